//! Obtains the distribution's kernel with the distribution's own programs, without root.
//!
//! `apt-cache depends` tells which real package is behind the one that always names the present kernel,
//! `apt-get download` fetches and verifies it, `dpkg-deb --extract` unpacks it. Nothing of the host's
//! package state is changed. Where the host's package lists are missing (a container image) or too old
//! (the version they name is gone), private ones are fetched into a temporary folder and used instead.
//!
//! In the cache, `kernels/RELEASE/` holds `vmlinuz` and `modules/`; `kernels/current` holds the release that
//! was obtained last. Which package to ask for is the one table at the end.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use sandbox_base::{ErrorKind, durable};

use super::Kernel;
use crate::process::{APT_GET, Cancel, Tool, apt_option};
use crate::{Error, Progress, Step, cache};

const APT_CACHE: Tool = Tool {
    program: "apt-cache",
    package: "apt",
};
const DPKG_DEB: Tool = Tool {
    program: "dpkg-deb",
    package: "dpkg",
};

/// The folder beneath the kernels in which apt works.
const SCRATCH: &str = ".apt";
/// Takes back what the host has configured to run around an update.
const NO_HOOKS: &str = "\
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
";
/// Longest answer of `apt-cache` that is read.
const MAX_ANSWER: u64 = 1 << 20;

/// Returns the kernel that was obtained last, if its files are still in the cache.
pub(super) fn cached(cache: &Path) -> Result<Option<Kernel>, Error> {
    let kernels = cache.join("kernels");
    let path = kernels.join("current");
    let release = match fs::read_to_string(&path) {
        Ok(release) => release,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io(format!("read {}", path.display()), error)),
    };
    let folder = kernels.join(release.trim());
    Ok(is_release(release.trim())
        .then(|| kernel_in(&folder))
        .filter(|k| k.image.exists()))
}

/// Obtains the present kernel of the distribution, or finds it in the cache.
pub(super) fn obtain(cache: &Path, progress: &Progress, cancel: &Cancel) -> Result<Kernel, Error> {
    let kernels = cache.join("kernels");
    let package = package_name()?;
    // One at a time: the second caller finds what the first has obtained.
    let _lock = cache::lock(&kernels, "obtain")?;
    let apt = Apt::with_lists_for(package, &kernels, progress, cancel)?;
    let release = apt.image_package.trim_start_matches(IMAGE).to_owned();
    let folder = cache::entry(&kernels, &release, |folder| {
        apt.unpack(folder, progress, cancel)
    })?;
    let current = kernels.join("current");
    durable::write(&current, release.as_bytes())
        .map_err(|error| Error::io(format!("write {}", current.display()), error))?;
    Ok(kernel_in(&folder))
}

fn kernel_in(folder: &Path) -> Kernel {
    Kernel {
        image: folder.join("vmlinuz"),
        version: folder
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned(),
        modules_dir: Some(folder.join("modules")),
    }
}

/// What the names of packages with a kernel image begin with.
const IMAGE: &str = "linux-image-";
/// What the names of packages with modules begin with, where a distribution keeps them apart.
const MODULES: &str = "linux-modules-";

/// Apt with package lists that know the kernel.
struct Apt {
    options: Vec<OsString>,
    /// Private lists and the programs' caches; gone with this value.
    scratch: tempfile::TempDir,
    private: bool,
    image_package: String,
}

impl Apt {
    /// Finds the image package with the host's lists or, where they do not know it, private ones.
    fn with_lists_for(
        package: &str,
        place: &Path,
        progress: &Progress,
        cancel: &Cancel,
    ) -> Result<Self, Error> {
        let failed = |error| Error::io("make a folder for apt", error);
        // One name, under the lock: what a killed predecessor left is removed here.
        match fs::remove_dir_all(place.join(SCRATCH)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let scratch = tempfile::Builder::new()
            .prefix(SCRATCH)
            .rand_bytes(0)
            .tempdir_in(place)
            .map_err(failed)?;
        let mut apt = Self {
            options: Vec::new(),
            scratch,
            private: false,
            image_package: String::new(),
        };
        // Apt drops root to a user who cannot enter the cache, warns, and downloads as root all the same.
        apt.options.push(apt_option("APT::Sandbox::User", "root"));
        apt.options
            .push(apt_option("Dir::Cache", apt.folder("cache")?));
        apt.options.push(apt_option("Debug::NoLocking", "1"));
        if let Some(found) = apt.image_behind(package, cancel)? {
            apt.image_package = found;
            return Ok(apt);
        }
        apt.fetch_private_lists(progress, cancel)?;
        apt.image_package = apt.image_behind(package, cancel)?.ok_or_else(|| {
            Error::new(ErrorKind::NotFound, "obtain a kernel").with_detail(format!(
                "apt knows no package {package}; check the apt sources of this host, \
                 or name a kernel image of your own"
            ))
        })?;
        Ok(apt)
    }

    fn folder(&self, name: &str) -> Result<PathBuf, Error> {
        let folder = self.scratch.path().join(name);
        fs::create_dir_all(folder.join("partial"))
            .map_err(|error| Error::io("make a folder for apt", error))?;
        Ok(folder)
    }

    fn command(&self, tool: Tool) -> Command {
        let mut command = tool.command();
        command.args(&self.options);
        command
    }

    /// Updates package lists of our own, which an ordinary user may.
    fn fetch_private_lists(&mut self, progress: &Progress, cancel: &Cancel) -> Result<(), Error> {
        progress.report(Step::UpdatingPackageLists);
        self.private = true;
        let lists = self.folder("lists")?;
        self.options.push(apt_option("Dir::State::lists", lists));
        let mut command = self.command(APT_GET);
        // The host's hooks are for the host's lists: they must not run for ours.
        let hooks = self.scratch.path().join("no-hooks.conf");
        fs::write(&hooks, NO_HOOKS).map_err(|error| Error::io("configure apt", error))?;
        command.arg("-c").arg(hooks);
        // Without the option, apt-get takes a network that is not there for a success with warnings.
        command.args(["-q", "update", "-o", "APT::Update::Error-Mode=any"]);
        APT_GET
            .output(&mut command, MAX_ANSWER, cancel)
            .map(drop)
            .map_err(|error| {
                Error::new(error.kind(), "update package lists")
                    .with_detail("check the network and the apt sources of this host")
                    .with_source(error)
            })
    }

    /// Returns the first package of a kernel image that `package` depends on.
    fn image_behind(&self, package: &str, cancel: &Cancel) -> Result<Option<String>, Error> {
        let names = self.dependencies(package, cancel)?;
        Ok(names
            .into_iter()
            .find(|n| n.strip_prefix(IMAGE).is_some_and(is_release)))
    }

    fn dependencies(&self, package: &str, cancel: &Cancel) -> Result<Vec<String>, Error> {
        let mut command = self.command(APT_CACHE);
        command.args(["depends", "--important", package]);
        let mut answer = String::new();
        let finished = APT_CACHE.stream(&mut command, cancel, |out| {
            io::Read::read_to_string(&mut io::Read::take(out, MAX_ANSWER), &mut answer)
                .map(drop)
                .map_err(|error| Error::io("read the answer of apt-cache", error))
        })?;
        // An unknown package is an unsuccessful end.
        let known = finished.status.success();
        Ok(if known {
            parse_dependencies(&answer)
        } else {
            Vec::new()
        })
    }

    /// Downloads the packages and keeps of them what a guest needs.
    fn unpack(mut self, folder: &Path, progress: &Progress, cancel: &Cancel) -> Result<(), Error> {
        let image = self.image_package.clone();
        let mut packages = vec![image.clone()];
        let dependencies = self.dependencies(&image, cancel)?;
        packages.extend(
            dependencies
                .into_iter()
                .filter(|name| name.starts_with(MODULES)),
        );
        let tree = folder.join("unpacked");
        for package in packages {
            let file = self.download(&package, progress, cancel)?;
            progress.report(Step::Unpacking { package });
            let mut command = DPKG_DEB.command();
            command.arg("--extract").arg(&file).arg(&tree);
            DPKG_DEB.output(&mut command, MAX_ANSWER, cancel)?;
        }
        let release = image.trim_start_matches(IMAGE);
        keep(&tree, release, folder)
            .map_err(|error| Error::io(format!("unpack the package {image}"), error))
    }

    /// Downloads a package; where the host's lists name a version that is gone, with private lists.
    fn download(
        &mut self,
        package: &str,
        progress: &Progress,
        cancel: &Cancel,
    ) -> Result<PathBuf, Error> {
        progress.report(Step::Downloading {
            package: package.to_owned(),
        });
        let folder = self.folder("packages")?;
        let mut result = self.try_download(package, &folder, cancel);
        if result.is_err() && !self.private && cancel.check("download").is_ok() {
            result = self
                .fetch_private_lists(progress, cancel)
                .and_then(|()| self.try_download(package, &folder, cancel));
        }
        result.map_err(|error| {
            Error::new(error.kind(), format!("download the package {package}"))
                .with_detail("check the network and the apt sources of this host")
                .with_source(error)
        })
    }

    fn try_download(
        &self,
        package: &str,
        folder: &Path,
        cancel: &Cancel,
    ) -> Result<PathBuf, Error> {
        let mut command = self.command(APT_GET);
        command
            .args(["-q", "download", package])
            .current_dir(folder);
        APT_GET.output(&mut command, MAX_ANSWER, cancel)?;
        let prefix = format!("{package}_");
        let found = fs::read_dir(folder)
            .map_err(|error| Error::io("look for the package", error))?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| {
                path.file_name()
                    .is_some_and(|n| n.to_string_lossy().starts_with(&prefix))
            });
        found.ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                "find the package that apt-get downloaded",
            )
        })
    }
}

/// Moves the image and the modules into `folder` and removes the rest. `/lib` may be `/usr/lib`.
fn keep(tree: &Path, release: &str, folder: &Path) -> io::Result<()> {
    fs::rename(
        tree.join("boot").join(format!("vmlinuz-{release}")),
        folder.join("vmlinuz"),
    )?;
    let modules = ["usr/lib/modules", "lib/modules"].map(|place| tree.join(place).join(release));
    let modules = modules.iter().find(|place| place.join("kernel").is_dir());
    let modules = modules.ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::NotFound,
            format!("it has no modules of {release}"),
        )
    })?;
    fs::rename(modules, folder.join("modules"))?;
    fs::remove_dir_all(tree)
}

/// Reads the real packages out of `apt-cache depends`; virtual ones stand in angle brackets.
fn parse_dependencies(answer: &str) -> Vec<String> {
    let names = answer.lines().filter_map(|line| {
        line.trim_start_matches([' ', '|'])
            .strip_prefix("Depends: ")
    });
    names
        .filter(|name| !name.starts_with('<'))
        .map(|name| name.trim().to_owned())
        .collect()
}

/// Answers whether a text may be a kernel's release: it becomes a file name.
fn is_release(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "+-._~".contains(c);
    text.starts_with(|c: char| c.is_ascii_digit()) && text.chars().all(allowed)
}

/// Returns the package that always depends on the present kernel for virtual machines.
fn package_name() -> Result<&'static str, Error> {
    let ubuntu = fs::read_to_string("/etc/os-release")
        .is_ok_and(|text| text.lines().any(|line| line == "ID=ubuntu"));
    match (std::env::consts::ARCH, ubuntu) {
        ("x86_64" | "aarch64", true) => Ok("linux-image-virtual"),
        ("x86_64", false) => Ok("linux-image-cloud-amd64"),
        ("aarch64", false) => Ok("linux-image-cloud-arm64"),
        (other, _) => Err(
            Error::new(ErrorKind::Unsupported, "obtain a kernel").with_detail(format!(
                "no kernel package is known for {other}; name a kernel image of your own"
            )),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn real_packages_are_told_from_virtual_ones() {
        let answer = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-1-cloud-amd64\n \
                      |Depends: <initramfs>\n    dracut\n  Depends: kmod\n";
        assert_eq!(
            parse_dependencies(answer),
            ["linux-image-6.1.0-1-cloud-amd64", "kmod"]
        );
    }

    #[test]
    fn a_release_is_never_a_path() {
        assert!(is_release("6.1.0-56-cloud-amd64"));
        for bad in ["", "..", "../6.1", "6/1", "cloud-amd64", "6.1 x"] {
            assert!(!is_release(bad), "{bad}");
        }
    }

    #[test]
    fn a_cache_without_its_files_is_no_kernel() {
        let cache = tempfile::tempdir().unwrap();
        assert_eq!(cached(cache.path()).unwrap(), None);
        fs::create_dir(cache.path().join("kernels")).unwrap();
        fs::write(cache.path().join("kernels/current"), "6.1.0-1").unwrap();
        assert_eq!(cached(cache.path()).unwrap(), None);
    }
}
