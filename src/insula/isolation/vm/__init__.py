"""Instances with a kernel of their own: QEMU and the guest agent."""
