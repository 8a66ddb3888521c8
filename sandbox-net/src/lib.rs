//! Egress for sandboxes: rules judged by name and by address, and a filtering proxy.
