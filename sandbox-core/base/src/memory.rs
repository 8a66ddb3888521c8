//! Memory that was freed, handed back to the kernel.
//!
//! glibc keeps what was freed: up to twice the largest block that was ever freed, at the top of each of its
//! arenas, and every hole below. After work whose need of memory is far above what it leaves behind, that is
//! most of what a process takes (`man 3 malloc_trim`, `man 3 mallopt`). Other allocators decide for
//! themselves.
//!
//! JUSTIFICATION: the call has no safe wrapper in what we depend on.
#![allow(unsafe_code)]

/// Hands back what was freed, where the allocator would keep it. Takes some milliseconds for each hundred
/// megabytes, so it belongs after work that is rare and large, on a thread that may block.
pub fn release() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it takes a number, locks each arena for itself, and touches nothing that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}
