//! OCI image layouts, good and bad.

use std::fs;
use std::path::Path;

use sandbox_base::ErrorKind;
use sandbox_vm::image::{Image, ImageStore, RootImage};
use sandbox_vm::{Error, Progress};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::erofs::{self, Mounted};

type Layer = tar::Builder<Vec<u8>>;

fn header(kind: tar::EntryType, size: usize) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size as u64);
    header.set_mode(0o755);
    header.set_mtime(1_000_000_000);
    header
}

fn file(layer: &mut Layer, path: &str, contents: &str) {
    let mut header = header(tar::EntryType::Regular, contents.len());
    layer
        .append_data(&mut header, path, contents.as_bytes())
        .unwrap();
}

fn link(layer: &mut Layer, kind: tar::EntryType, path: &str, target: &str) {
    layer
        .append_link(&mut header(kind, 0), path, target)
        .unwrap();
}

/// A layout on disk that is put together blob by blob.
struct Layout(tempfile::TempDir);

impl Layout {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("blobs/sha256")).unwrap();
        Self(folder)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn blob(&self, kind: &str, bytes: &[u8]) -> Value {
        let hex: String = Sha256::digest(bytes)
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        fs::write(self.path().join("blobs/sha256").join(&hex), bytes).unwrap();
        let media_type = format!("application/vnd.oci.image.{kind}");
        json!({"mediaType": media_type, "digest": format!("sha256:{hex}"), "size": bytes.len()})
    }

    fn image(&self, layers: &[Vec<u8>], architecture: &str) -> Value {
        let config = json!({
            "created": "2024-01-02T03:04:05Z", "architecture": architecture, "os": "linux",
            "config": {"User": "1000:1000", "Env": ["A=b"], "Entrypoint": ["/run"], "Cmd": null,
                       "WorkingDir": "/work"},
        });
        let config = self.blob("config.v1+json", config.to_string().as_bytes());
        let layers: Vec<_> = layers
            .iter()
            .map(|l| self.blob("layer.v1.tar", l))
            .collect();
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": layers});
        let mut manifest = self.blob("manifest.v1+json", manifest.to_string().as_bytes());
        manifest["platform"] = json!({"architecture": architecture, "os": "linux"});
        manifest
    }

    fn index(&self, manifests: &[Value]) {
        let index = json!({"schemaVersion": 2, "manifests": manifests});
        fs::write(self.path().join("index.json"), index.to_string()).unwrap();
    }

    async fn prepare(&self, image: &Image) -> Result<RootImage, Error> {
        ImageStore::new(&self.path().join("cache"))
            .prepare(image, Progress::silent())
            .await
    }
}

fn here() -> &'static str {
    if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut encoder, bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

fn layers() -> [Vec<u8>; 3] {
    let mut base = Layer::new(Vec::new());
    file(&mut base, "usr/bin/tool", "old tool");
    link(&mut base, tar::EntryType::Symlink, "bin", "usr/bin");
    file(&mut base, "etc/secret", &"x".repeat(20_000));
    file(&mut base, "opt/a", "a");
    file(&mut base, "opt/b", "b");
    let mut middle = Layer::new(Vec::new());
    file(&mut middle, "etc/.wh.secret", "");
    file(&mut middle, "bin/tool", "new tool");
    link(
        &mut middle,
        tar::EntryType::Link,
        "bin/same",
        "usr/bin/tool",
    );
    file(&mut middle, "opt/.wh..wh..opq", "");
    file(&mut middle, "opt/c", "c");
    let mut top = Layer::new(Vec::new());
    file(&mut top, "reuses/the-room", &"y".repeat(19_000));
    [base, middle, top].map(|layer| layer.into_inner().unwrap())
}

#[tokio::test]
async fn layers_are_joined_as_the_specification_says() {
    let [base, middle, top] = layers();
    let layout = Layout::new();
    let other = layout.image(&[], "s390x");
    layout.index(&[
        other,
        layout.image(&[base, gzip(&middle), zstd(&top)], here()),
    ]);
    let image = layout
        .prepare(&Image::oci_layout(layout.path()))
        .await
        .unwrap();
    assert_eq!(image.config.env, ["A=b"]);
    assert_eq!(image.config.user.as_deref(), Some("1000:1000"));
    assert_eq!(image.config.working_dir.as_deref(), Some("/work"));
    assert_eq!(image.config.entrypoint, ["/run"]);
    erofs::check(&image.path);
    let bytes = fs::read(&image.path).unwrap();
    assert!(
        !bytes.windows(600).any(|w| w.iter().all(|&b| b == b'x')),
        "hidden contents remain"
    );

    let Some(mounted) = Mounted::new(&image.path) else {
        return;
    };
    let seen = erofs::look(mounted.path());
    let names: Vec<_> = seen.keys().map(|path| path.to_str().unwrap()).collect();
    let expected = [
        "",
        "bin",
        "etc",
        "opt",
        "opt/c",
        "reuses",
        "reuses/the-room",
        "usr",
        "usr/bin",
        "usr/bin/same",
        "usr/bin/tool",
    ];
    assert_eq!(names, expected);
    let tool = &seen[Path::new("usr/bin/tool")];
    assert_eq!((&*tool.contents, tool.links), (&b"new tool"[..], 2));
    assert_eq!(seen[Path::new("reuses/the-room")].contents, [b'y'; 19_000]);
}

#[tokio::test]
async fn a_reference_chooses_among_images() {
    let layout = Layout::new();
    let named = |name: &str, contents: &str| {
        let mut layer = Layer::new(Vec::new());
        file(&mut layer, "which", contents);
        let mut manifest = layout.image(&[layer.into_inner().unwrap()], here());
        manifest["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        manifest
    };
    let (one, two) = (named("one", "1"), named("two", "2"));
    layout.index(&[one.clone(), two]);
    let ambiguous = layout
        .prepare(&Image::oci_layout(layout.path()))
        .await
        .unwrap_err();
    assert_eq!(ambiguous.kind(), ErrorKind::Invalid);
    assert!(ambiguous.to_string().contains("one, two"), "{ambiguous}");
    let missing = Image::oci_layout_reference(layout.path(), "three");
    assert_eq!(
        layout.prepare(&missing).await.unwrap_err().kind(),
        ErrorKind::NotFound
    );
    let by_name = Image::oci_layout_reference(layout.path(), "one");
    let by_name = layout.prepare(&by_name).await.unwrap();
    let by_digest = Image::oci_layout_reference(layout.path(), one["digest"].as_str().unwrap());
    assert_eq!(layout.prepare(&by_digest).await.unwrap(), by_name);
}

#[tokio::test]
async fn damaged_and_hostile_layouts_are_refused() {
    let layer = |path: &str| {
        // Written into the header by hand: the library would not.
        let mut header = header(tar::EntryType::Regular, 0);
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        header.set_cksum();
        header.as_bytes().to_vec()
    };
    for path in ["../out", "a/../../out", "/../../out"] {
        let layout = Layout::new();
        layout.index(&[layout.image(&[layer(path)], here())]);
        let error = layout
            .prepare(&Image::oci_layout(layout.path()))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{path}: {error}");
    }

    let layout = Layout::new();
    layout.index(&[layout.image(&[], "s390x")]);
    let error = layout
        .prepare(&Image::oci_layout(layout.path()))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);

    let layout = Layout::new();
    let whole = gzip(&layers()[0]);
    let manifest = layout.image(std::slice::from_ref(&whole), here());
    layout.index(&[manifest]);
    let hex: String = Sha256::digest(&whole)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    let path = layout.path().join("blobs/sha256").join(hex);
    let mut damaged = whole.clone();
    damaged[20] ^= 1;
    fs::write(&path, damaged).unwrap();
    let error = layout
        .prepare(&Image::oci_layout(layout.path()))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("another digest"), "{error}");
    fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    let error = layout
        .prepare(&Image::oci_layout(layout.path()))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);

    fs::write(layout.path().join("index.json"), "{").unwrap();
    let error = layout
        .prepare(&Image::oci_layout(layout.path()))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
}
