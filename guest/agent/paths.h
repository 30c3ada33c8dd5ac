/* paths: where things are in the agent's own root (a tmpfs that the workload never sees). */
#pragma once

#define DIR_IMAGE "/image"     /* the erofs disk */
#define DIR_UPPER "/upper"     /* the ext4 disk: upper/ and work/ */
#define DIR_SCAFFOLD "/scaffold" /* below the image: mount points and files that every root has */
#define DIR_ROOT "/root"       /* the overlay of these, with the workload's mounts on it */
#define DIR_DEV "/workload-dev"
#define DIR_FILES "/files"     /* texts that are bind-mounted over the workload's files */
#define DIR_SHARES "/shares"   /* virtiofs shares of which a part is mounted */
#define FILE_BOOT_ID DIR_FILES "/boot_id"
#define FILE_MACHINE_ID DIR_FILES "/machine-id"
#define CGROUP_ROOT "/sys/fs/cgroup"
#define CGROUP_WORKLOAD CGROUP_ROOT "/workload"
