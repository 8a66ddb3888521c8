//! Machines for sandboxes: hypervisor backends, images, and the channel to the guest.
