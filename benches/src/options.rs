//! The few options that all benchmarks have.

use std::path::PathBuf;

use crate::Result;

/// What a person asked for.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Options {
    /// How often floor and sandbox take turns.
    pub rounds: usize,
    /// Whether the report is JSON.
    pub json: bool,
    /// Where kernels and images are; the user's own cache when `None`.
    pub cache: Option<PathBuf>,
}

impl Options {
    /// Reads the program's arguments: `[--rounds N] [--json] [--cache DIR]`.
    ///
    /// # Errors
    ///
    /// For anything else, with the usage.
    pub fn from_arguments(
        arguments: impl IntoIterator<Item = String>,
        default_rounds: usize,
    ) -> Result<Self> {
        let usage = "options: [--rounds N] [--json] [--cache DIR]";
        let mut options = Self {
            rounds: default_rounds,
            json: false,
            cache: None,
        };
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or(usage);
            match argument.as_str() {
                "--rounds" => options.rounds = value()?.parse()?,
                "--json" => options.json = true,
                "--cache" => options.cache = Some(value()?.into()),
                _ => return Err(usage.into()),
            }
        }
        if options.rounds == 0 {
            return Err("no rounds, no medians".into());
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Options> {
        Options::from_arguments(line.split_whitespace().map(str::to_owned), 5)
    }

    #[test]
    fn options_are_read_and_others_refused() {
        let options = read("--rounds 3 --json --cache /c").unwrap();
        assert_eq!((options.rounds, options.json), (3, true));
        assert_eq!(options.cache, Some("/c".into()));
        assert_eq!(read("").unwrap().rounds, 5);
        for bad in ["--rounds", "--rounds x", "--rounds 0", "more"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
