//! Workspaces for sandboxes: a two-way file synchronizer that loses nothing.
