//! The images in the cache, each made once.
//!
//! An image is a folder `images/<key>` with `root.erofs` and `config.json`; it is there whole or not at all
//! (see `cache`).

use std::fs;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use sandbox_base::ErrorKind;
use sha2::{Digest, Sha256};

use super::builder::Builder;
use super::compression;
#[cfg(unix)]
use super::default::{self, Distribution};
use super::oci;
use super::tar::{self, Whiteouts};
use super::{Image, ImageConfig, RootImage};
use crate::process::{self, Cancel};
use crate::{Error, Progress, cache};

/// Part of every key: raise it when the same source must give another image than before.
const WRITER_VERSION: &str = "1";

/// Makes root images and keeps them in a cache folder.
///
/// Stores on the same folder, in this or other processes, share their images.
#[derive(Debug, Clone)]
pub struct ImageStore {
    cache: PathBuf,
}

impl ImageStore {
    /// Uses the folder `cache`, which is created when it is needed.
    pub fn new(cache: &Path) -> Self {
        Self {
            cache: cache.to_owned(),
        }
    }

    /// Returns the root image made of `image`, making it when the cache has none.
    ///
    /// Dropping the future stops the work; the cache keeps nothing half. Two callers that want the same
    /// image make it once.
    ///
    /// # Errors
    ///
    /// `NotFound` and `PermissionDenied` for a source that is missing or unreadable (or a program that the
    /// default image needs), `Invalid` for one that is damaged or of another format, `Exhausted` for one
    /// beyond our bounds or a full disk.
    pub async fn prepare(&self, image: &Image, progress: Progress) -> Result<RootImage, Error> {
        self.run(image, progress, false).await
    }

    /// Makes the root image anew even if the cache has it: for a default image with the packages of today.
    /// Machines that run on the old one keep it.
    ///
    /// # Errors
    ///
    /// As [`Self::prepare`].
    pub async fn rebuild(&self, image: &Image, progress: Progress) -> Result<RootImage, Error> {
        self.run(image, progress, true).await
    }

    async fn run(&self, image: &Image, progress: Progress, anew: bool) -> Result<RootImage, Error> {
        let (cache, image) = (self.cache.clone(), image.clone());
        process::blocking("prepare an image", move |cancel: &Cancel| {
            let making = Making {
                cache: &cache,
                image: &image,
                progress: &progress,
                cancel,
            };
            making.run(anew)
        })
        .await
    }
}

/// One request, on a thread that may block.
struct Making<'a> {
    cache: &'a Path,
    image: &'a Image,
    progress: &'a Progress,
    cancel: &'a Cancel,
}

impl Making<'_> {
    fn run(&self, anew: bool) -> Result<RootImage, Error> {
        let key = self.key()?;
        let identity = key.first_chunk().copied().unwrap_or_default();
        let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        let images = self.cache.join("images");
        let make = |folder: &Path| self.make(folder, identity);
        let folder = if anew {
            cache::rebuild(&images, &hex, make)?
        } else {
            cache::entry(&images, &hex, make)?
        };
        let config = folder.join("config.json");
        let config = fs::read(&config)
            .map_err(|error| Error::io(format!("read {}", config.display()), error))
            .and_then(|bytes| parse_config(&config, &bytes))?;
        Ok(RootImage {
            path: folder.join("root.erofs"),
            digest: format!("sha256:{hex}"),
            config,
        })
    }

    fn key(&self) -> Result<Vec<u8>, Error> {
        let mut key = Sha256::new();
        key.update(WRITER_VERSION);
        match self.image {
            #[cfg(unix)]
            Image::Directory(path) => {
                key.update("directory");
                super::directory::fingerprint(path, &mut key, self.cancel)?;
            }
            #[cfg(unix)]
            Image::Default => {
                key.update("default");
                Distribution::of_host()?.fingerprint(&mut key);
            }
            Image::Tar(path) => {
                key.update("tar");
                fingerprint(path, &mut key)?;
            }
            Image::OciLayout { path, reference } => {
                key.update("oci");
                key.update(
                    oci::Chosen::find(path, reference.as_deref())?
                        .digest
                        .as_str(),
                );
            }
            #[cfg(not(unix))]
            other => return Err(unsupported(other)),
        }
        Ok(key.finalize().to_vec())
    }

    fn make(&self, folder: &Path, identity: [u8; 16]) -> Result<(), Error> {
        let target = folder.join("root.erofs");
        let start = |source: String| Builder::create(&target, source, self.progress, self.cancel);
        let config = match self.image {
            #[cfg(unix)]
            Image::Directory(path) => {
                let mut builder = start(path.display().to_string())?;
                super::directory::take(path, &mut builder)?;
                builder.finish(identity)?;
                ImageConfig::default()
            }
            #[cfg(unix)]
            Image::Default => {
                let mut builder = start("the default image".to_owned())?;
                let distribution = Distribution::of_host()?;
                let (progress, cancel) = (self.progress, self.cancel);
                let scratch = folder.join("scratch");
                let failed = |error| Error::io(format!("use {}", scratch.display()), error);
                fs::create_dir(&scratch).map_err(failed)?;
                let config =
                    default::take(&distribution, &scratch, &mut builder, progress, cancel)?;
                fs::remove_dir_all(&scratch).map_err(failed)?;
                builder.finish(identity)?;
                config
            }
            Image::Tar(path) => {
                let mut builder = start(path.display().to_string())?;
                take_tar(path, &mut builder)?;
                builder.finish(identity)?;
                ImageConfig::default()
            }
            Image::OciLayout { path, reference } => {
                let chosen = oci::Chosen::find(path, reference.as_deref())?;
                let mut builder = start(path.display().to_string())?;
                let config = chosen.take(&mut builder)?;
                builder.finish(identity)?;
                config
            }
            #[cfg(not(unix))]
            other => return Err(unsupported(other)),
        };
        let path = folder.join("config.json");
        let failed = |error| Error::io(format!("write {}", path.display()), error);
        let bytes = serde_json::to_vec_pretty(&config).map_err(|error| failed(error.into()))?;
        fs::write(&path, bytes).map_err(failed)
    }
}

/// Mixes what identifies a file's contents into `key`, without reading it.
fn fingerprint(path: &Path, key: &mut Sha256) -> Result<(), Error> {
    let failed = |error| Error::io(format!("read {}", path.display()), error);
    let metadata = fs::metadata(path).map_err(failed)?;
    let path = fs::canonicalize(path).map_err(failed)?;
    key.update(path.as_os_str().as_encoded_bytes());
    key.update(metadata.len().to_le_bytes());
    let modified = metadata
        .modified()
        .ok()
        .and_then(|t| t.duration_since(UNIX_EPOCH).ok());
    key.update(modified.unwrap_or_default().as_nanos().to_le_bytes());
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        for number in [metadata.dev(), metadata.ino()] {
            key.update(number.to_le_bytes());
        }
        for number in [metadata.ctime(), metadata.ctime_nsec()] {
            key.update(number.to_le_bytes());
        }
    }
    Ok(())
}

fn take_tar(path: &Path, builder: &mut Builder<'_>) -> Result<(), Error> {
    let name = path.display().to_string();
    let failed = |error| Error::io(format!("read {name}"), error);
    let file = fs::File::open(path).map_err(failed)?;
    let source = compression::uncompressed(BufReader::with_capacity(128 << 10, file));
    let source = BufReader::with_capacity(128 << 10, source.map_err(failed)?);
    match tar::take(source, &name, Whiteouts::Ignore, builder)? {
        0 => Err(
            Error::new(ErrorKind::Invalid, format!("use the archive {name}"))
                .with_detail("it is empty, or no tar archive"),
        ),
        _ => Ok(()),
    }
}

#[cfg(not(unix))]
fn unsupported(image: &Image) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        format!("make an image of {image:?}"),
    )
    .with_detail("this host has no such source")
}

fn parse_config(path: &Path, bytes: &[u8]) -> Result<ImageConfig, Error> {
    serde_json::from_slice(bytes).map_err(|error| {
        Error::new(ErrorKind::Invalid, format!("read {}", path.display()))
            .with_detail("the cache entry is damaged; remove its folder")
            .with_source(error)
    })
}
