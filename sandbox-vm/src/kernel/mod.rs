//! The kernel that guests run: the distribution's own, so that it is patched by people whose job it is.
//!
//! A [`Kernel`] is an image that a hypervisor boots and a folder of modules. It comes from one of two
//! places:
//!
//! * [`Kernel::from_distribution`]: the package that the distribution's apt names for virtual machines,
//!   downloaded and unpacked into the cache without root, once; later calls need no network.
//! * [`Kernel::from_files`]: whatever the caller has.
//!
//! [`Kernel::modules`] answers what to load and in which order, and [`initrd::build`] puts it with the
//! agent into an initial ramdisk. Module files may be plain, xz (Debian 13) or zstd (Ubuntu); they are
//! uncompressed on the host, so that the guest's agent and any kernel can load them without the kernel's
//! own `CONFIG_MODULE_DECOMPRESS`, and the guest does not pay for it.

pub mod initrd;
mod modinfo;
mod modules;
mod package;

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use sandbox_base::ErrorKind;

pub use initrd::Module;
pub use modules::{Wanted, virtio_guest};

use crate::process::{self, Cancel};
use crate::{Error, Progress};
use modules::{Lookup, OrderError};

/// Largest module file that is read, uncompressed. The largest of a distribution have a few MiB.
const MAX_MODULE_BYTES: u64 = 64 << 20;

/// A kernel image and its modules.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Kernel {
    /// The image to boot, as the architecture's loader takes it (`vmlinuz`, a bzImage on x86-64).
    pub image: PathBuf,
    /// The kernel's release, as `uname -r` says it inside; empty when it is not known.
    pub version: String,
    /// The folder that holds `kernel/` and `modules.builtin`; `None` for a kernel that has all that a
    /// guest needs built in.
    pub modules_dir: Option<PathBuf>,
}

impl Kernel {
    /// Takes a kernel that the caller has: the image, and the folder of its modules
    /// (`/lib/modules/RELEASE`, or one like it) unless everything is built in.
    ///
    /// # Errors
    ///
    /// `NotFound` when there is no such image or folder.
    pub fn from_files(image: impl Into<PathBuf>, modules: Option<PathBuf>) -> Result<Self, Error> {
        let image = image.into();
        let found = fs::metadata(&image)
            .map_err(|error| Error::io(format!("use the kernel {}", image.display()), error))?;
        if !found.is_file() {
            let operation = format!("use the kernel {}", image.display());
            return Err(Error::new(ErrorKind::Invalid, operation).with_detail("it is not a file"));
        }
        if let Some(folder) = modules.as_ref().filter(|folder| !folder.is_dir()) {
            let operation = format!("use the kernel modules in {}", folder.display());
            return Err(Error::new(ErrorKind::NotFound, operation)
                .with_detail("it is not a folder; give the one that holds modules.builtin"));
        }
        let version = modules.as_deref().and_then(Path::file_name);
        let version = version
            .map(|v| v.to_string_lossy().into_owned())
            .unwrap_or_default();
        Ok(Self {
            image,
            version,
            modules_dir: modules,
        })
    }

    /// Returns the distribution's kernel for virtual machines from the cache folder, obtaining it first
    /// when the cache has none. With one in the cache, neither the network nor apt is touched.
    ///
    /// Dropping the future ends the programs that it started; the cache keeps nothing half.
    ///
    /// # Errors
    ///
    /// `NotFound` when `apt-get` or `dpkg-deb` is missing or apt knows no such package, `Unsupported` on
    /// an architecture that we know no package for, `Io` when the download fails. Each says what to do.
    pub async fn from_distribution(cache: &Path, progress: Progress) -> Result<Self, Error> {
        if let Some(kernel) = package::cached(cache)? {
            return Ok(kernel);
        }
        Self::update_from_distribution(cache, progress).await
    }

    /// Asks apt which kernel is the present one and obtains it unless the cache has it. Kernels in the
    /// cache that it replaces stay: machines may run on them.
    ///
    /// # Errors
    ///
    /// As [`Self::from_distribution`].
    pub async fn update_from_distribution(cache: &Path, progress: Progress) -> Result<Self, Error> {
        let cache = cache.to_owned();
        process::blocking("obtain a kernel", move |cancel: &Cancel| {
            package::obtain(&cache, &progress, cancel)
        })
        .await
    }

    /// Returns the modules to load for `wanted`, uncompressed, each after what it needs. Blocks while
    /// it reads them.
    ///
    /// # Errors
    ///
    /// `NotFound` when the kernel has a required module neither built in nor as a file, `Invalid` when a
    /// file is not a module, or what the file system answers.
    pub fn modules(&self, wanted: &[Wanted]) -> Result<Vec<Module>, Error> {
        let Some(folder) = &self.modules_dir else {
            return Ok(Vec::new());
        };
        let index = Index::read(folder)?;
        let mut contents = HashMap::new();
        let lookup = |name: &str| index.look_up(name, &mut contents);
        let order = modules::load_order(wanted, lookup).map_err(|error| self.explain(error))?;
        let take = |name: String| contents.remove(&name).map(|c| Module::new(name, c));
        Ok(order.into_iter().filter_map(take).collect())
    }

    fn explain(&self, error: OrderError<Error>) -> Error {
        let operation = format!("choose the modules of kernel {}", self.version);
        match error {
            OrderError::Lookup(error) => error,
            OrderError::Missing {
                name,
                needed_by: None,
            } => {
                let detail = format!("it has no module {name}; use a kernel that has it");
                Error::new(ErrorKind::NotFound, operation).with_detail(detail)
            }
            OrderError::Missing {
                name,
                needed_by: Some(by),
            } => {
                let detail = format!("{name}, which {by} needs, is missing; give the whole folder");
                Error::new(ErrorKind::NotFound, operation).with_detail(detail)
            }
            OrderError::Cycle { name } => {
                let detail = format!("{name} needs itself; the folder is damaged");
                Error::new(ErrorKind::Invalid, operation).with_detail(detail)
            }
        }
    }
}

/// The files in a folder of modules, by name.
struct Index {
    builtin: HashSet<String>,
    files: HashMap<String, PathBuf>,
}

impl Index {
    fn read(folder: &Path) -> Result<Self, Error> {
        let failed = |error| Error::io(format!("read the modules in {}", folder.display()), error);
        let builtin = match fs::read_to_string(folder.join("modules.builtin")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            result => result.map_err(failed)?,
        };
        let builtin = builtin
            .lines()
            .filter_map(|line| module_name(Path::new(line)))
            .collect();
        let mut files = HashMap::new();
        let mut folders = vec![folder.join("kernel")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                let kind = entry.file_type().map_err(failed)?;
                if kind.is_dir() {
                    folders.push(entry.path());
                } else if let Some(name) = module_name(&entry.path()) {
                    files.insert(name, entry.path());
                }
            }
        }
        Ok(Self { builtin, files })
    }

    /// Looks a module up and keeps its contents for the one who loads it.
    fn look_up(
        &self,
        name: &str,
        contents: &mut HashMap<String, Vec<u8>>,
    ) -> Result<Lookup, Error> {
        if self.builtin.contains(name) {
            return Ok(Lookup::Builtin);
        }
        let Some(path) = self.files.get(name) else {
            return Ok(Lookup::Missing);
        };
        let operation = format!("read the module {}", path.display());
        let file = uncompressed(path).map_err(|error| Error::io(&*operation, error))?;
        let info = modinfo::parse(&file).ok_or_else(|| {
            Error::new(ErrorKind::Invalid, operation).with_detail("it is not a kernel module")
        })?;
        contents.insert(name.to_owned(), file);
        Ok(Lookup::Module(info))
    }
}

/// Returns the name of the module in a file, or `None` when the file is of another kind.
fn module_name(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let stem = [".ko", ".ko.xz", ".ko.zst", ".ko.gz"]
        .iter()
        .find_map(|ending| file.strip_suffix(ending))?;
    Some(modinfo::normalize(stem))
}

fn uncompressed(path: &Path) -> io::Result<Vec<u8>> {
    let file = io::BufReader::new(fs::File::open(path)?);
    let reader: Box<dyn Read> = match path.extension().and_then(|e| e.to_str()) {
        Some("gz") => Box::new(flate2::bufread::GzDecoder::new(file)),
        Some("xz") => Box::new(lzma_rust2::XzReader::new(file, true)),
        Some("zst") => {
            Box::new(ruzstd::decoding::StreamingDecoder::new(file).map_err(io::Error::other)?)
        }
        _ => Box::new(file),
    };
    let mut contents = Vec::new();
    reader.take(MAX_MODULE_BYTES).read_to_end(&mut contents)?;
    Ok(contents)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder_with(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, contents) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, contents).unwrap();
        }
        folder
    }

    fn kernel(folder: &Path) -> Kernel {
        let image = folder.join("vmlinuz");
        Kernel {
            image,
            version: "6.1".into(),
            modules_dir: Some(folder.to_owned()),
        }
    }

    #[test]
    fn modules_are_read_in_load_order_and_builtin_ones_left_out() {
        let virtio = modinfo::tests::elf(b"depends=\0");
        let rng = modinfo::tests::elf(b"depends=virtio,rng-core\0");
        let folder = folder_with(&[
            ("kernel/drivers/virtio/virtio.ko", &virtio),
            ("kernel/drivers/char/virtio-rng.ko", &rng),
            ("modules.builtin", b"kernel/drivers/char/rng-core.ko\n"),
        ]);
        let wanted = [Wanted::required("virtio_rng"), Wanted::required("rng-core")];
        let modules = kernel(folder.path()).modules(&wanted).unwrap();
        let names: Vec<_> = modules.iter().map(|m| m.name.as_str()).collect();
        assert_eq!(names, ["virtio", "virtio_rng"]);
        assert_eq!(modules[1].contents, rng);
    }

    #[test]
    fn compressed_modules_are_uncompressed() {
        use std::io::Write;
        let plain = modinfo::tests::elf(b"depends=\0");
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(&plain).unwrap();
        let zst = ruzstd::encoding::compress_to_vec(
            &*plain,
            ruzstd::encoding::CompressionLevel::Uncompressed,
        );
        let folder = folder_with(&[
            ("kernel/a.ko.gz", &gz.finish().unwrap()),
            ("kernel/b.ko.zst", &zst),
        ]);
        let wanted = [Wanted::required("a"), Wanted::required("b")];
        for module in kernel(folder.path()).modules(&wanted).unwrap() {
            assert_eq!(module.contents, plain, "{}", module.name);
        }
    }

    #[test]
    fn a_file_that_is_no_module_is_invalid() {
        let folder = folder_with(&[("kernel/a.ko", b"hello")]);
        let error = kernel(folder.path())
            .modules(&[Wanted::required("a")])
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
    }

    #[test]
    fn a_missing_image_is_not_found() {
        let error = Kernel::from_files("/no/such/vmlinuz", None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }
}
