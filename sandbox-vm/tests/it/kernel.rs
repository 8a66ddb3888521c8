//! The distribution's kernel, obtained with the distribution's programs.

use std::path::PathBuf;

use sandbox_vm::kernel::{self, Kernel};
use sandbox_vm::{Progress, Step};

/// Where downloads are kept from run to run, if the caller says so.
pub(crate) fn cache() -> (PathBuf, Option<tempfile::TempDir>) {
    if let Some(path) = std::env::var_os("SANDBOX_TEST_CACHE") {
        return (path.into(), None);
    }
    let folder = tempfile::tempdir().unwrap();
    (folder.path().to_owned(), Some(folder))
}

#[tokio::test]
async fn the_distributions_kernel_is_obtained_once_and_has_what_a_guest_needs() {
    let (cache, _folder) = cache();
    // Both at once: one obtains it, the other finds it.
    let first = Kernel::from_distribution(&cache, Progress::silent());
    let second = Kernel::from_distribution(&cache, Progress::silent());
    let (first, second) = tokio::join!(first, second);
    let kernel = first.unwrap();
    assert_eq!(kernel, second.unwrap());

    let modules = kernel.modules(&kernel::virtio_guest()).unwrap();
    let names: Vec<_> = modules.iter().map(|m| m.name.as_str()).collect();
    let place = |name: &str| names.iter().position(|n| *n == name);
    assert!(place("virtio_ring") < place("virtio_blk"), "{names:?}");
    assert!(place("overlay").is_some(), "{names:?}");

    let quiet = Progress::new(|step: Step| panic!("the cache was not used: {step:?}"));
    assert_eq!(
        Kernel::from_distribution(&cache, quiet).await.unwrap(),
        kernel
    );
    let left: Vec<_> = std::fs::read_dir(cache.join("kernels"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with('.') && !name.ends_with(".lock"))
        .collect();
    assert!(left.is_empty(), "remains: {left:?}");
}
