//! How origins read the bytes of requests: strictly, and in the ways that were seen to differ from it. Own code,
//! none of the proxy's.

/// A whole request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) method: String,
    /// Its `X-Id`.
    pub(super) id: String,
    framing: Framing,
    body: Vec<u8>,
}

/// How long a request said to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    Nothing,
    Length(usize),
    Chunked,
}

/// What stands behind the last whole request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Tail {
    Nothing,
    /// The connection ended within a head, or within a body that was framed so.
    Cut(Option<(String, Framing)>),
    Wrong(&'static str),
}

/// A way to read. All but the strict one take bare line ends, folds, empty lines before a request, white space and
/// `_` in names, any coding that has `chunk` in it, numbers that only begin as such, and chunk extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reader {
    Strict,
    Lenient {
        /// Whether `Content-Length` counts where there is `Transfer-Encoding` too.
        length_first: bool,
        /// Whether the last of several lengths counts.
        last: bool,
        /// Whether a folded line is a line of its own.
        unfolded: bool,
    },
}

impl Reader {
    /// Every lenient way.
    pub(super) fn lenient() -> impl Iterator<Item = Self> {
        (0..8u8).map(|bits| Self::Lenient {
            length_first: bits & 1 != 0,
            last: bits & 2 != 0,
            unfolded: bits & 4 != 0,
        })
    }

    /// Reads all that came over one connection.
    pub(super) fn read(self, bytes: &[u8]) -> (Vec<Seen>, Tail) {
        let mut rest = bytes;
        let mut all = Vec::new();
        loop {
            if rest.is_empty() {
                return (all, Tail::Nothing);
            }
            match self.read_one(&mut rest) {
                Ok(seen) => all.push(seen),
                Err(tail) => return (all, tail),
            }
        }
    }

    fn read_one(self, rest: &mut &[u8]) -> Result<Seen, Tail> {
        if self != Self::Strict {
            while let [b'\r' | b'\n', more @ ..] = *rest {
                *rest = more;
            }
        }
        let mut lines = Vec::new();
        loop {
            let line = self.line(rest)?.ok_or(Tail::Cut(None))?;
            if line.is_empty() {
                break;
            }
            lines.push(line);
        }
        let head = self.head(&lines).map_err(Tail::Wrong)?;
        let cut = || Tail::Cut(Some((head.id.clone(), head.framing)));
        let body = match head.framing {
            Framing::Nothing => Vec::new(),
            Framing::Length(length) => take(rest, length).ok_or_else(cut)?.to_vec(),
            Framing::Chunked => self.chunks(rest).map_err(|tail| match tail {
                Tail::Cut(_) => cut(),
                tail => tail,
            })?,
        };
        Ok(Seen { body, ..head })
    }

    /// Takes a line without its end; `None` if its end is not there.
    fn line<'a>(self, rest: &mut &'a [u8]) -> Result<Option<&'a [u8]>, Tail> {
        let bytes = *rest;
        let Some(at) = bytes.iter().position(|byte| matches!(byte, b'\r' | b'\n')) else {
            return Ok(None);
        };
        let end = match (&bytes[at..], self) {
            ([b'\r', b'\n', ..], _) => 2,
            ([b'\r'], _) => return Ok(None),
            (_, Self::Strict) => return Err(Tail::Wrong("a bare line end")),
            _ => 1,
        };
        *rest = &bytes[at + end..];
        Ok(Some(&bytes[..at]))
    }

    fn head(self, lines: &[&[u8]]) -> Result<Seen, &'static str> {
        let first = lines.first().ok_or("no request line")?;
        let first = String::from_utf8_lossy(first);
        let parts: Vec<_> = match self {
            Self::Strict => first.split(' ').collect(),
            Self::Lenient { .. } => first.split_whitespace().collect(),
        };
        let fine = matches!(parts[..], [_, target, "HTTP/1.1"] if target.starts_with('/') || target == "*");
        if self == Self::Strict && !fine {
            return Err("no request line of an origin's");
        }
        let fields = self.fields(&lines[1..])?;
        let named = |wanted: &str| -> Vec<&str> {
            let fitting = fields.iter().filter(|(name, _)| name == wanted);
            fitting.map(|(_, value)| value.as_str()).collect()
        };
        Ok(Seen {
            method: parts.first().unwrap_or(&"").to_string(),
            id: named("x-id").join("+"),
            framing: self.framing(&named("content-length"), &named("transfer-encoding"))?,
            body: Vec::new(),
        })
    }

    fn fields(self, lines: &[&[u8]]) -> Result<Vec<(String, String)>, &'static str> {
        let mut fields: Vec<(String, String)> = Vec::new();
        for line in lines {
            let text = String::from_utf8_lossy(line);
            let folded = text.starts_with([' ', '\t']);
            match (self, text.split_once(':')) {
                (Self::Strict, _) if folded => return Err("a folded line"),
                (Self::Strict, None) => return Err("no colon"),
                (Self::Strict, Some((name, value))) => {
                    let token =
                        |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
                    if name.is_empty() || !name.chars().all(token) {
                        return Err("no token");
                    }
                    if value.chars().any(|c| c.is_ascii_control() && c != '\t') {
                        return Err("a control character");
                    }
                    fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
                }
                (Self::Lenient { unfolded, .. }, found) => match (found, fields.last_mut()) {
                    (_, Some((_, before))) if folded && !unfolded => *before += &text,
                    (Some((name, value)), _) => {
                        let name = name.trim_matches(|c: char| c <= ' ').replace('_', "-");
                        let value = value.trim_matches(|c: char| c <= ' ');
                        fields.push((name.to_ascii_lowercase(), value.to_owned()));
                    }
                    (None, _) => {}
                },
            }
        }
        Ok(fields)
    }

    fn framing(self, lengths: &[&str], codings: &[&str]) -> Result<Framing, &'static str> {
        match self {
            Self::Strict => match (lengths, codings) {
                ([], []) => Ok(Framing::Nothing),
                ([length], []) if length.bytes().all(|byte| byte.is_ascii_digit()) => {
                    length.parse().map(Framing::Length).map_err(|_| "no length")
                }
                ([], [coding]) if coding.eq_ignore_ascii_case("chunked") => Ok(Framing::Chunked),
                _ => Err("a length of two readings"),
            },
            Self::Lenient {
                length_first, last, ..
            } => {
                let mut numbers = lengths.iter().flat_map(|text| text.split(',')).map(number);
                let length = if last {
                    numbers.next_back()
                } else {
                    numbers.next()
                };
                let chunked = codings
                    .iter()
                    .any(|coding| coding.to_ascii_lowercase().contains("chunk"));
                Ok(match (length, chunked) {
                    (Some(length), chunked) if length_first || !chunked => Framing::Length(length),
                    (_, true) => Framing::Chunked,
                    (_, false) => Framing::Nothing,
                })
            }
        }
    }

    fn chunks(self, rest: &mut &[u8]) -> Result<Vec<u8>, Tail> {
        let mut body = Vec::new();
        loop {
            let line = self.line(rest)?.ok_or(Tail::Cut(None))?;
            let text = String::from_utf8_lossy(line);
            let digits = match self {
                Self::Strict => &text[..],
                Self::Lenient { .. } => text.split(';').next().unwrap_or_default().trim(),
            };
            let size = usize::from_str_radix(digits, 16);
            let size = size.map_err(|_| Tail::Wrong("no chunk size"))?;
            if size == 0 {
                break;
            }
            body.extend_from_slice(take(rest, size).ok_or(Tail::Cut(None))?);
            if !self.line(rest)?.ok_or(Tail::Cut(None))?.is_empty() {
                return Err(Tail::Wrong("no end of a chunk"));
            }
        }
        match self.line(rest)?.ok_or(Tail::Cut(None))? {
            [] => Ok(body),
            _ => Err(Tail::Wrong("a trailer")),
        }
    }
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, more) = rest.split_at_checked(count)?;
    *rest = more;
    Some(taken)
}

/// Reads the number with which a text begins.
fn number(text: &str) -> usize {
    let text = text.trim().trim_start_matches('+');
    let end = text.find(|c: char| !c.is_ascii_digit());
    text[..end.unwrap_or(text.len())].parse().unwrap_or(0)
}
