use super::*;
use crate::template::key::tests::key;

/// Builds a template of a few blocks; returns the folder of its files.
fn build(store: &TemplateStore, key: &TemplateKey) -> PathBuf {
    let building = store.begin(key).unwrap().unwrap();
    let mut memory = vec![0u8; 1 << 20];
    memory[300 << 10..][..4].copy_from_slice(b"warm");
    fs::write(building.memory(), memory).unwrap();
    fs::write(building.state(), "devices").unwrap();
    let files = building.nonce.clone();
    building.finish(key, Some(2_000_000)).unwrap();
    store.folder.join(key.digest()).join(files)
}

fn store() -> (tempfile::TempDir, TemplateStore) {
    let cache = tempfile::tempdir().unwrap();
    let store = TemplateStore::new(cache.path());
    (cache, store)
}

fn find(store: &TemplateStore) -> Option<Saved> {
    store.find(&key(), |_| true).unwrap()
}

#[test]
fn a_template_is_found_by_its_key_alone() {
    let (_cache, store) = store();
    assert!(find(&store).is_none());
    let files = build(&store, &key());
    let saved = find(&store).unwrap();
    assert_eq!(saved.memory, files.join("memory"));
    assert_eq!(saved.tsc_khz, Some(2_000_000));
    let mut other = key();
    other.cpus += 1;
    assert!(store.find(&other, |_| true).unwrap().is_none());
    assert!(
        find(&store).is_some(),
        "looking for another one changes nothing"
    );
}

#[cfg(unix)]
#[test]
fn r08_what_is_saved_is_its_owners_alone() {
    use std::os::unix::fs::MetadataExt;
    let (_cache, store) = store();
    build(&store, &key());
    assert_eq!(fs::metadata(&store.folder).unwrap().mode() & 0o777, 0o700);
}

#[test]
fn r07_a_damaged_template_is_dropped() {
    type Damage = fn(&Path);
    let damage: [(&str, Damage); 8] = [
        ("another state", |f| {
            fs::write(f.join("state"), "device5").unwrap()
        }),
        ("no state", |f| fs::remove_file(f.join("state")).unwrap()),
        ("a byte of memory", |f| {
            let mut memory = fs::read(f.join("memory")).unwrap();
            memory[300 << 10] = b'W';
            fs::write(f.join("memory"), memory).unwrap();
        }),
        ("memory moved to a block of zeros", |f| {
            let mut memory = fs::read(f.join("memory")).unwrap();
            memory.rotate_right(256 << 10);
            fs::write(f.join("memory"), memory).unwrap();
        }),
        ("shorter memory", |f| {
            let file = File::options().write(true).open(f.join("memory")).unwrap();
            file.set_len(1 << 19).unwrap();
        }),
        ("no memory", |f| fs::remove_file(f.join("memory")).unwrap()),
        ("no description", |f| {
            fs::remove_file(f.with_file_name(DESCRIPTION)).unwrap();
        }),
        ("half a description", |f| {
            let path = f.with_file_name(DESCRIPTION);
            let text = fs::read(&path).unwrap();
            fs::write(path, &text[..text.len() / 2]).unwrap();
        }),
    ];
    for (what, damage) in damage {
        let (_cache, store) = store();
        let files = build(&store, &key());
        damage(&files);
        assert!(find(&store).is_none(), "{what}");
        assert!(!files.exists(), "{what}: it is gone");
        build(&store, &key());
        assert!(find(&store).is_some(), "{what}: it can be built again");
    }
}

#[test]
fn r07_a_template_of_another_version_key_or_host_is_dropped() {
    let rewrite = |files: &Path, from: &str, to: &str| {
        let path = files.with_file_name(DESCRIPTION);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from));
        fs::write(path, text.replace(from, to)).unwrap();
    };
    for (from, to) in [
        ("\"version\": 1", "\"version\": 2"),
        ("QEMU 7.2", "QEMU 9.9"),
        ("\"nonce\": \"", "\"nonce\": \"../"),
    ] {
        let (_cache, store) = store();
        let files = build(&store, &key());
        rewrite(&files, from, to);
        assert!(find(&store).is_none(), "{to}");
        assert!(!files.exists(), "{to}");
    }
    let (_cache, store) = store();
    build(&store, &key());
    let other_rate = store
        .find(&key(), |saved| saved.tsc_khz == Some(1))
        .unwrap();
    assert!(other_rate.is_none());
    assert!(find(&store).is_none());
}

#[test]
fn a_template_that_was_copied_is_looked_at_once_as_a_whole() {
    let (_cache, store) = store();
    let files = build(&store, &key());
    let memory = files.join("memory");
    let bytes = fs::read(&memory).unwrap();
    fs::remove_file(&memory).unwrap();
    fs::write(&memory, bytes).unwrap();
    let text = || fs::read(files.with_file_name(DESCRIPTION)).unwrap();
    let before = text();
    assert!(find(&store).is_some());
    let after = text();
    assert_ne!(before, after, "it knows its memory's file now");
    assert!(find(&store).is_some());
    assert_eq!(text(), after);
}

#[test]
fn r09_two_builders_do_not_build_at_once_and_a_dead_one_leaves_nothing_usable() {
    let (_cache, store) = store();
    let building = store.begin(&key()).unwrap().unwrap();
    assert!(store.begin(&key()).unwrap().is_none());
    let mut other = key();
    other.cpus += 1;
    assert!(
        store.begin(&other).unwrap().is_some(),
        "another key is free"
    );
    fs::write(building.memory(), "half").unwrap();
    assert!(find(&store).is_none() && store.list().unwrap().is_empty());
    // As after a kill: the lock is free and nothing is cleaned up.
    let partial = building.partial.clone();
    let kept = partial.with_extension("kept");
    fs::rename(&partial, &kept).unwrap();
    drop(building);
    fs::rename(&kept, &partial).unwrap();
    assert!(find(&store).is_none());
    let files = build(&store, &key());
    assert_eq!(fs::read_dir(files.parent().unwrap()).unwrap().count(), 3);
    assert!(!partial.exists());
}

#[test]
fn r09_what_dead_builders_left_is_pruned_and_a_living_one_is_not() {
    let (_cache, store) = store();
    let dead = store.folder.join(".dead.partial");
    fs::create_dir_all(dead.join("x")).unwrap();
    fs::create_dir_all(store.folder.join(".dead.1.gone")).unwrap();
    let building = store.begin(&key()).unwrap().unwrap();
    assert_eq!(store.prune(&Limits::default()).unwrap(), [""; 0]);
    assert!(!dead.exists() && building.partial.exists());
    assert!(!store.folder.join(".dead.1.gone").exists());
}

#[test]
fn pruning_keeps_what_was_used_last() {
    let (_cache, store) = store();
    let keys: Vec<TemplateKey> = (1..=3)
        .map(|cpus| {
            let mut key = key();
            key.cpus = cpus;
            build(&store, &key);
            key
        })
        .collect();
    let age = |key: &TemplateKey, days: u64| {
        let used = File::options()
            .write(true)
            .open(store.folder.join(key.digest()).join(USED))
            .unwrap();
        let then = SystemTime::now() - Duration::from_secs(days * 24 * 60 * 60);
        used.set_modified(then).unwrap();
    };
    for (key, days) in keys.iter().zip([40, 2, 1]) {
        age(key, days);
    }
    assert_eq!(store.prune(&Limits::default()).unwrap(), [keys[0].digest()]);
    // Being used counts.
    assert!(store.find(&keys[1], |_| true).unwrap().is_some());
    let one = store.list().unwrap()[0].bytes;
    let limits = Limits::default().with_bytes(one);
    assert_eq!(store.prune(&limits).unwrap(), [keys[2].digest()]);
    let none = Limits::default().with_unused(Duration::ZERO);
    assert_eq!(store.prune(&none).unwrap(), [keys[1].digest()]);
    assert!(store.list().unwrap().is_empty());
}

#[test]
fn a_template_is_removed_by_the_beginning_of_its_name() {
    let (_cache, store) = store();
    build(&store, &key());
    let name = store.list().unwrap()[0].name.clone();
    for nobody in ["", ".", "../", "zz"] {
        let error = store.remove(nobody).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{nobody}");
    }
    store.remove(&name[..8]).unwrap();
    assert!(store.list().unwrap().is_empty());
}
