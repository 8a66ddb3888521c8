//! What the origins serve besides greetings: a repository, and packages.

use std::{path::Path, process::Command};

/// A repository with one file.
const REPOSITORY: &str = "
    export HOME=$PWD GIT_CONFIG_NOSYSTEM=1 GIT_AUTHOR_DATE='2020-01-01 00:00 +0000' \
        GIT_COMMITTER_DATE='2020-01-01 00:00 +0000'
    git -c init.defaultBranch=main init -q work
    seq 1 20000 >work/numbers
    git -C work add numbers
    git -C work -c user.name=t -c user.email=t@a.test commit -q -m numbers
    mkdir -p files/git
    git clone -q --bare work files/git/project.git";

/// A repository of one package, which apt is told to trust.
const PACKAGES: &str = "
    mkdir -p package/DEBIAN files/apt apt/state/lists/partial apt/cache/archives/partial
    printf 'Package: %s\nVersion: 1.0\nArchitecture: all\nMaintainer: t <t@a.test>\nDescription: x\n' hello-net \
        >package/DEBIAN/control
    dpkg-deb --build --root-owner-group package files/apt/hello-net.deb
    { cat package/DEBIAN/control
      echo 'Filename: ./hello-net.deb'
      echo \"Size: $(stat -c %s files/apt/hello-net.deb)\"
      echo \"SHA256: $(sha256sum files/apt/hello-net.deb | cut -d ' ' -f 1)\"; } >files/apt/Packages";

/// Makes `files/git/project.git`, a repository with what is in `work`.
pub(crate) fn repository(folder: &Path) {
    prepare(folder, REPOSITORY);
}

/// Makes `files/apt`, with the package `hello-net`.
pub(crate) fn packages(folder: &Path) {
    prepare(folder, PACKAGES);
}

/// Returns a line that runs apt-get with a system of its own in a folder that [`packages`] were made in.
pub(crate) fn apt_get(folder: &Path, url: &str, verb: &str) -> String {
    let here = folder.display();
    format!(
        "cd {here}; echo 'deb [trusted=yes] {url}/apt ./' >sources.list
         exec apt-get -q -o Dir::State={here}/apt/state -o Dir::State::status=/dev/null \
            -o Dir::Cache={here}/apt/cache -o Dir::Etc::SourceList={here}/sources.list \
            -o Dir::Etc::SourceParts=/dev/null -o APT::Sandbox::User= -o Acquire::Languages=none \
            -o Acquire::https::CAInfo=\"$SSL_CERT_FILE\" -o Acquire::Retries=0 \
            -o APT::Update::Error-Mode=any {verb}"
    )
}

/// Runs a script of the test's own preparations.
#[track_caller]
fn prepare(folder: &Path, script: &str) {
    let mut sh = Command::new("sh");
    sh.args(["-ec", script]).current_dir(folder);
    let output = sh.output().unwrap();
    assert!(output.status.success(), "{output:?}");
}
