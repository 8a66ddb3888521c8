//! Sandboxes that are restored from a template.

use std::fs;
use std::path::Path;

use sandbox_core::vm::template::Limits;
use sandbox_core::{ColdReason, Dirs, Started, TemplateStore, Templates};

use crate::place::{Place, cache, sh};

/// A place whose templates are its own.
fn own() -> (Place, TemplateStore) {
    let mut place = Place::new();
    let own = place.folder.path().join("cache");
    fs::create_dir(&own).unwrap();
    for shared in ["kernels", "disks", "images", "initrd", "probe", "helper"] {
        let target = cache().join(shared);
        fs::create_dir_all(&target).unwrap();
        std::os::unix::fs::symlink(target, own.join(shared)).unwrap();
    }
    place.dirs = Dirs::beneath(place.folder.path()).with_cache(&own);
    let store = TemplateStore::new(&own);
    (place, store)
}

#[tokio::test(flavor = "multi_thread")]
async fn r04_nothing_of_a_sandbox_is_in_its_template() {
    const MARK: &str = "mark-of-the-first-sandbox-7f3a";
    let (place, store) = own();
    let builder = place
        .microvm()
        .templates(Templates::Use)
        .name("mark-name-7f3a");
    let sandbox = builder.env("MARK", MARK).create().await.unwrap();
    let started = sandbox.describe().await.unwrap().machine.unwrap().started;
    assert!(matches!(started, Started::Restored(_)), "{started:?}");
    let said = sh(&sandbox, "echo $MARK; cat /etc/hostname").await;
    assert_eq!(said, format!("{MARK}\nmark-name-7f3a"));
    sandbox.remove().await.unwrap();
    let [template] = &store.list().unwrap()[..] else {
        panic!("there is not one template");
    };
    let folder = place.dirs.cache.join("templates").join(&template.name);
    let mut searched = 0;
    for_each_file(&folder, &mut |path| {
        let bytes = fs::read(path).unwrap();
        for mark in [&MARK[5..], "mark-name"] {
            let found = bytes
                .windows(mark.len())
                .any(|window| window == mark.as_bytes());
            assert!(!found, "{mark} is in {}", path.display());
        }
        searched += bytes.len();
    });
    assert!(searched > 100 << 20, "the memory is {searched} bytes long");
    assert_eq!(store.prune(&Limits::default()).unwrap(), [""; 0]);
}

fn for_each_file(folder: &Path, visit: &mut dyn FnMut(&Path)) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => for_each_file(&path, visit),
            false => visit(&path),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn templates_can_be_switched_off() {
    let (place, store) = own();
    let builder = place.microvm().templates(Templates::Off);
    let sandbox = builder.create().await.unwrap();
    let started = sandbox.describe().await.unwrap().machine.unwrap().started;
    assert_eq!(started, Started::Cold(ColdReason::Off));
    assert!(store.list().unwrap().is_empty());
    sandbox.remove().await.unwrap();
}
