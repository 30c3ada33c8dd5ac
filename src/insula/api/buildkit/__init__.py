"""BuildKit's gRPC API, as far as Dockerfiles go: what `docker buildx` and compose 2 build with.

    connection   gRPC on a connection that was HTTP/1.1 before
    session      what the client of a build offers: files, secrets, credentials, its SSH agent
    transfer     directories over a session, either way
    attributes   a frontend's attributes to BuildOptions
    progress     what a build tells, as vertices
    loading      a build's Dockerfile and contexts
    solve        builds by their reference: from the request to what is exported
    services     Control, LLBBridge and Health, as gRPC calls them

There is no solver and no LLB: the builder is the classic endpoint's (`insula.build`).  Loaded by the first
client that asks for it.
"""
