//! Blobs, read through a check of their size and digest.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use sandbox_base::ErrorKind;
use serde::Deserialize;
use sha2::{Digest as _, Sha256, Sha512};

use crate::Error;

/// A digest as the specification writes it, `ALGORITHM:HEX`, of an algorithm that we know. Safe as a part
/// of a path.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(in crate::image) struct Digest(String);

impl Digest {
    pub(in crate::image) fn as_str(&self) -> &str {
        &self.0
    }

    fn parts(&self) -> (&str, &str) {
        self.0.split_once(':').unwrap_or_default()
    }
}

impl TryFrom<String> for Digest {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (algorithm, hex) = text.split_once(':').unwrap_or_default();
        let digits = match algorithm {
            "sha256" => 64,
            "sha512" => 128,
            _ => return Err("a digest is neither sha256 nor sha512".to_owned()),
        };
        let lower_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if hex.len() != digits || !hex.bytes().all(lower_hex) {
            return Err(format!(
                "a {algorithm} digest has not {digits} hexadecimal digits"
            ));
        }
        Ok(Self(text))
    }
}

#[derive(Debug)]
enum Hasher {
    Sha256(Sha256),
    Sha512(Sha512),
}

/// A blob that is being read. What it gives is not trustworthy until [`Blob::finish`] agrees.
#[derive(Debug)]
pub(super) struct Blob {
    file: io::Take<File>,
    digest: Digest,
    hasher: Hasher,
    left: u64,
}

/// Opens a blob of a layout.
pub(super) fn open(layout: &Path, digest: &Digest, size: u64) -> Result<Blob, Error> {
    let (algorithm, hex) = digest.parts();
    let path = layout.join("blobs").join(algorithm).join(hex);
    let operation = || format!("read the blob {}", digest.as_str());
    let file = File::open(&path).map_err(|error| {
        Error::io(operation(), error).with_detail("the layout is incomplete; copy the image again")
    })?;
    let length = file
        .metadata()
        .map_err(|error| Error::io(operation(), error))?
        .len();
    if length != size {
        return Err(
            Error::new(ErrorKind::Invalid, operation()).with_detail(format!(
                "it has {length} bytes, not {size}; the layout is damaged, copy the image again"
            )),
        );
    }
    let hasher = match algorithm {
        "sha512" => Hasher::Sha512(Sha512::new()),
        _ => Hasher::Sha256(Sha256::new()),
    };
    // One byte more, so that a blob that grows is noticed.
    let file = file.take(size.saturating_add(1));
    Ok(Blob {
        file,
        digest: digest.clone(),
        hasher,
        left: size,
    })
}

impl Blob {
    /// Reads what is left and compares the digest.
    pub(super) fn finish(mut self) -> Result<(), Error> {
        let operation = format!("read the blob {}", self.digest.as_str());
        io::copy(&mut self, &mut io::sink()).map_err(|error| Error::io(&*operation, error))?;
        let found = match self.hasher {
            Hasher::Sha256(hasher) => hex(&hasher.finalize()),
            Hasher::Sha512(hasher) => hex(&hasher.finalize()),
        };
        if self.left == 0 && found == self.digest.parts().1 {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Invalid, operation).with_detail(
            "its contents have another digest; the layout is damaged, copy the image again",
        ))
    }
}

impl Read for Blob {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        match &mut self.hasher {
            Hasher::Sha256(hasher) => hasher.update(&buffer[..read]),
            Hasher::Sha512(hasher) => hasher.update(&buffer[..read]),
        }
        self.left = self.left.saturating_sub(read as u64);
        Ok(read)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_never_a_path() {
        let good = format!("sha256:{}", "0".repeat(64));
        assert_eq!(Digest::try_from(good.clone()).unwrap().as_str(), good);
        for bad in [
            "",
            "sha256:",
            "sha256:../../etc/passwd",
            "md5:00",
            &good[..70],
            &good.to_uppercase(),
        ] {
            Digest::try_from(bad.to_owned()).unwrap_err();
        }
        Digest::try_from(format!("sha256:{}/", "0".repeat(63))).unwrap_err();
    }

    #[test]
    fn other_contents_are_refused() {
        let layout = tempfile::tempdir().unwrap();
        let folder = layout.path().join("blobs/sha256");
        std::fs::create_dir_all(&folder).unwrap();
        let digest = hex(&Sha256::digest(b"good"));
        let path = folder.join(&digest);
        let digest = Digest::try_from(format!("sha256:{digest}")).unwrap();
        std::fs::write(&path, b"good").unwrap();
        open(layout.path(), &digest, 4).unwrap().finish().unwrap();
        std::fs::write(&path, b"evil").unwrap();
        let error = open(layout.path(), &digest, 4)
            .unwrap()
            .finish()
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        let error = open(layout.path(), &digest, 5).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
    }
}
