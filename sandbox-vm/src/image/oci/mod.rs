//! An OCI image layout as the source of an image.
//!
//! The layout (image-spec, "Image Layout") is a folder with `index.json` and blobs named by their digests.
//! From the index a descriptor leads to a manifest, perhaps through further indexes that choose by
//! platform; the manifest names a configuration and layers. Every blob is read through a check of its size
//! and digest (see `blob`), so a layout that was damaged or tampered with is refused, not used.
//!
//! The documents are small structures of our own, which read what we need and ignore the rest.

mod blob;

use std::collections::HashMap;
use std::fs;
use std::io::BufReader;
use std::path::Path;

use sandbox_base::ErrorKind;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::ImageConfig;
use super::builder::Builder;
use super::compression;
use super::tar::{self, Whiteouts};
use crate::Error;
pub(super) use blob::Digest;

/// Longest index, manifest or configuration: registries take no longer ones.
const MAX_DOCUMENT: u64 = 4 << 20;
/// Most layers of an image; overlayfs and Docker have 500 and 127.
const MAX_LAYERS: usize = 512;
/// Most indexes between the layout and a manifest.
const MAX_DEPTH: usize = 4;
const REFERENCE: &str = "org.opencontainers.image.ref.name";

/// What leads to a blob.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: Digest,
    size: u64,
    #[serde(default)]
    platform: Option<Platform>,
    #[serde(default)]
    annotations: HashMap<String, String>,
}

#[derive(Debug, Clone, Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

#[derive(Debug, Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

/// An index or a manifest: old writers leave the media type out, so the fields tell.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Document {
    Manifest(Manifest),
    Index(Index),
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Configuration {
    created: Option<String>,
    architecture: String,
    os: String,
    config: Option<Execution>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Execution {
    user: Option<String>,
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: Option<String>,
}

/// One image of a layout, chosen and its manifest checked.
#[derive(Debug)]
pub(super) struct Chosen<'a> {
    layout: &'a Path,
    manifest: Manifest,
    pub(super) digest: Digest,
}

impl<'a> Chosen<'a> {
    /// Finds the image that `reference` names, or the only one for this host's architecture.
    pub(super) fn find(layout: &'a Path, reference: Option<&str>) -> Result<Self, Error> {
        let operation = || format!("use the OCI layout {}", layout.display());
        let index: Index = read_index(layout)?;
        let mut candidates = index.manifests;
        if let Some(reference) = reference {
            let named = |d: &Descriptor| {
                d.digest.as_str() == reference
                    || d.annotations
                        .get(REFERENCE)
                        .is_some_and(|name| name == reference)
            };
            candidates.retain(named);
        }
        for _ in 0..MAX_DEPTH {
            let descriptor = choose(candidates, reference, operation)?;
            match read_document(layout, &descriptor)? {
                Document::Index(index) => candidates = index.manifests,
                Document::Manifest(manifest) if manifest.layers.len() > MAX_LAYERS => {
                    return Err(Error::new(ErrorKind::Exhausted, operation())
                        .with_detail(format!("the image has more than {MAX_LAYERS} layers")));
                }
                Document::Manifest(manifest) => {
                    return Ok(Self {
                        layout,
                        manifest,
                        digest: descriptor.digest,
                    });
                }
            }
        }
        Err(
            Error::new(ErrorKind::Invalid, operation()).with_detail(format!(
                "it has more than {MAX_DEPTH} indexes in one another"
            )),
        )
    }

    /// Takes the layers into an image, the lowest first, and returns the configuration.
    pub(super) fn take(&self, builder: &mut Builder<'_>) -> Result<ImageConfig, Error> {
        let configuration: Configuration = read_document(self.layout, &self.manifest.config)?;
        let here = architecture();
        if !configuration.architecture.is_empty()
            && (&*configuration.architecture, &*configuration.os) != (here, "linux")
        {
            let (os, other) = (configuration.os, configuration.architecture);
            let operation = format!("use the OCI layout {}", self.layout.display());
            return Err(
                Error::new(ErrorKind::Unsupported, operation).with_detail(format!(
                    "the image is for {os} on {other}, not for linux on {here}"
                )),
            );
        }
        for layer in &self.manifest.layers {
            builder.begin_layer();
            self.take_layer(layer, builder)?;
        }
        let run = configuration.config.unwrap_or_default();
        let given = |text: Option<String>| text.filter(|text| !text.is_empty());
        Ok(ImageConfig {
            env: run.env.unwrap_or_default(),
            user: given(run.user),
            working_dir: given(run.working_dir),
            entrypoint: run.entrypoint.unwrap_or_default(),
            cmd: run.cmd.unwrap_or_default(),
            created: configuration.created,
            manifest: Some(self.digest.as_str().to_owned()),
        })
    }

    fn take_layer(&self, layer: &Descriptor, builder: &mut Builder<'_>) -> Result<(), Error> {
        if layer.media_type.contains("encrypted") {
            let operation = format!("use the layer {}", layer.digest.as_str());
            return Err(
                Error::new(ErrorKind::Unsupported, operation).with_detail("it is encrypted")
            );
        }
        let name = layer.digest.as_str();
        let mut blob = blob::open(self.layout, &layer.digest, layer.size)?;
        let failed = |error| Error::io(format!("read the layer {name}"), error);
        let taken = compression::uncompressed(BufReader::with_capacity(128 << 10, &mut blob))
            .map_err(failed)
            .and_then(|source| {
                let source = BufReader::with_capacity(128 << 10, source);
                tar::take(source, name, Whiteouts::Apply, builder)
            });
        // Damage shows as whatever the decoder stumbles over; the digest says what it really is.
        blob.finish()?;
        taken.map(drop)
    }
}

fn choose(
    candidates: Vec<Descriptor>,
    reference: Option<&str>,
    operation: impl Fn() -> String,
) -> Result<Descriptor, Error> {
    let here = architecture();
    let runs_here = |d: &Descriptor| {
        let fits = |p: &Platform| p.os == "linux" && p.architecture == here;
        d.platform.as_ref().is_none_or(fits)
    };
    let names: Vec<_> = candidates
        .iter()
        .filter_map(|d| d.annotations.get(REFERENCE).cloned())
        .collect();
    let mut fitting: Vec<_> = candidates.into_iter().filter(runs_here).collect();
    fitting.dedup_by(|a, b| a.digest == b.digest);
    match (fitting.pop(), fitting.is_empty()) {
        (Some(only), true) => Ok(only),
        (Some(_), false) => Err(
            Error::new(ErrorKind::Invalid, operation()).with_detail(format!(
                "it holds several images; give one of their references: {}",
                names.join(", ")
            )),
        ),
        (None, _) => Err(Error::new(ErrorKind::NotFound, operation()).with_detail(
            match reference {
                Some(reference) => format!("it holds no image {reference:?} for linux on {here}"),
                None => format!("it holds no image for linux on {here}"),
            },
        )),
    }
}

/// This host's architecture as Go and with it the specification name it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

fn read_index(layout: &Path) -> Result<Index, Error> {
    let path = layout.join("index.json");
    let operation = || format!("use the OCI layout {}", layout.display());
    let advice = "it must be a folder with index.json, as `skopeo copy … oci:FOLDER` makes it";
    let file =
        fs::File::open(&path).map_err(|error| Error::io(operation(), error).with_detail(advice))?;
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut std::io::Read::take(file, MAX_DOCUMENT), &mut bytes)
        .map_err(|error| Error::io(operation(), error).with_detail(advice))?;
    parse(&bytes, operation)
}

fn read_document<T: DeserializeOwned>(layout: &Path, from: &Descriptor) -> Result<T, Error> {
    let operation = || format!("read the blob {}", from.digest.as_str());
    if from.size > MAX_DOCUMENT {
        return Err(Error::new(ErrorKind::Exhausted, operation())
            .with_detail(format!("it has more than {MAX_DOCUMENT} bytes")));
    }
    let mut blob = blob::open(layout, &from.digest, from.size)?;
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut blob, &mut bytes)
        .map_err(|error| Error::io(operation(), error))?;
    blob.finish()?;
    parse(&bytes, operation)
}

fn parse<T: DeserializeOwned>(bytes: &[u8], operation: impl Fn() -> String) -> Result<T, Error> {
    serde_json::from_slice(bytes)
        .map_err(|error| Error::new(ErrorKind::Invalid, operation()).with_source(error))
}
