//! A microVM per AI agent, embedded: sandboxes with synchronized workspaces and judged egress, without a daemon.
