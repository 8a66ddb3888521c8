//! What an HTTP request asks for, in the one form that rules compare.
//!
//! Origins read paths in many ways: they resolve `..`, merge `//`, decode once or twice, cut at `;`, take a
//! backslash for a slash. A rule that matched one reading while the origin follows another would be no rule. So a
//! path is compared only if all of them read the same in it; any other is *ambiguous*, and a rule that names
//! paths denies it ([`Reason::Ambiguous`](crate::policy::Reason::Ambiguous)) without guessing. Ambiguous are:
//!
//! - segments `.` and `..`, segments that end in a dot or a space, and empty ones but the last;
//! - `/`, `\`, `;`, `?`, `#` and control characters in percent-encoded form, and `\`, `;` and `#` as they are;
//! - a percent sign that is still one after decoding and has two hexadecimal digits behind it (`%252e`), one that
//!   begins no encoding (`%u002e`), and encodings of what is not UTF-8 (`%c0%ae`);
//! - everything outside visible ASCII.
//!
//! What is left is decoded once and compared segment by segment. Where readings differ in what cannot be seen
//! here, an allow takes the narrow one and a block the wide one: methods and paths are compared exactly by an
//! allow, and without regard to ASCII case and to a slash at the end by a block.
//!
//! The query is not compared. A method that is named elsewhere than in the request line is the origin's to read:
//! [`OVERRIDES`] has to be stripped where a request rule decided; the same in a form or a query
//! (`?_method=DELETE`) passes, and is what such a rule does not hold.

use std::{fmt, str::FromStr};

use crate::Error;

/// Headers that some origins take in place of the request line's method or path, in lower case.
///
/// Whoever forwards a request that [`Allow::by_request`](crate::policy::Allow::by_request) marks removes them.
pub const OVERRIDES: [&str; 6] = [
    "x-http-method-override",
    "x-http-method",
    "x-method-override",
    "x-original-url",
    "x-rewrite-url",
    "x-override-url",
];

/// A request's method and path, read once.
///
/// Any text makes one; what cannot be read in one way only is kept as such, and matters only to a rule that asks
/// for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestLine {
    method: Result<Box<str>, &'static str>,
    path: Result<RequestPath, &'static str>,
}

impl RequestLine {
    /// Reads a method, and a path with or without a query; an empty path is `/` (RFC 9110, 4.2.3).
    pub fn new(method: &str, path: &str) -> Self {
        let path = path.split('?').next().unwrap_or(path);
        let token = is_token(method).then(|| method.into());
        Self {
            method: token.ok_or("its method is not a token"),
            path: RequestPath::read(if path.is_empty() { "/" } else { path }),
        }
    }

    /// Returns the method as it was written.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn method(&self) -> Result<&str, &'static str> {
        self.method.as_deref().map_err(|what| *what)
    }

    /// Returns the path.
    ///
    /// # Errors
    ///
    /// What makes it ambiguous.
    pub fn path(&self) -> Result<&RequestPath, &'static str> {
        self.path.as_ref().map_err(|what| *what)
    }
}

/// RFC 9110, 5.6.2.
fn is_token(text: &str) -> bool {
    let in_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(in_token)
}

/// A path that reads the same to everybody, decoded; it begins with a slash.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RequestPath(Box<str>);

impl RequestPath {
    /// Returns the decoded path.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn read(text: &str) -> Result<Self, &'static str> {
        let segments = text
            .strip_prefix('/')
            .ok_or("its path does not begin with `/`")?;
        let mut path = String::with_capacity(text.len());
        let mut rest = segments.split('/').peekable();
        while let Some(segment) = rest.next() {
            let segment = decode(segment)?;
            if segment.is_empty() && rest.peek().is_some() {
                return Err("its path has an empty segment (`//`)");
            }
            if segment.ends_with(['.', ' ']) {
                return Err("a segment of its path is `.` or `..`, or ends in a dot or a space");
            }
            path.push('/');
            path.push_str(&segment);
        }
        Ok(Self(path.into()))
    }

    fn segments(&self) -> std::str::Split<'_, char> {
        self.0.strip_prefix('/').unwrap_or(&self.0).split('/')
    }
}

/// Decodes what stands between two slashes.
fn decode(text: &str) -> Result<String, &'static str> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        let byte = match *first {
            b'%' => {
                let [high, low, tail @ ..] = rest else {
                    return Err("its path has a percent sign that encodes nothing");
                };
                rest = tail;
                hex(*high).zip(hex(*low)).map(|(high, low)| high << 4 | low)
            }
            b'!'..=b'~' => Some(*first),
            _ => return Err("its path has a character outside visible ASCII"),
        };
        let byte = byte.ok_or("its path has a percent sign that encodes nothing")?;
        if byte.is_ascii_control() || matches!(byte, b'/' | b'\\' | b';' | b'?' | b'#') {
            return Err("its path has a character that other software may take for a separator");
        }
        bytes.push(byte);
    }
    let encoded_again = |w: &[u8]| w[0] == b'%' && hex(w[1]).is_some() && hex(w[2]).is_some();
    if bytes.windows(3).any(encoded_again) {
        return Err("its path is percent-encoded twice");
    }
    String::from_utf8(bytes).map_err(|_| "its path encodes what is not UTF-8")
}

fn hex(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).map(|digit| digit as u8)
}

/// How a rule is compared where what an origin reads cannot be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reading {
    /// For what is allowed: exactly as written.
    Narrow,
    /// For what is blocked: whatever an origin may take for the same.
    Wide,
}

impl Reading {
    fn same(self, a: &str, b: &str) -> bool {
        match self {
            Self::Narrow => a == b,
            Self::Wide => a.eq_ignore_ascii_case(b),
        }
    }
}

/// Which requests a rule is about: methods, paths, or both.
///
/// ```
/// use sandbox_net::policy::{Requests, RuleSet};
///
/// let reads = Requests::new().methods(["GET", "HEAD"])?.paths(["/repos/**"])?;
/// let rules = RuleSet::deny().allow_requests("api.github.com", reads)?;
/// assert_eq!(rules.allowed()[0].to_string(), "api.github.com GET, HEAD /repos/**");
/// # Ok::<(), sandbox_net::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Requests {
    methods: Vec<Box<str>>,
    paths: Vec<PathPattern>,
}

impl Requests {
    /// All requests, until methods or paths are named.
    pub fn new() -> Self {
        Self::default()
    }

    /// Names methods, in any case. `GET` does not include `HEAD`.
    ///
    /// # Errors
    ///
    /// `Invalid` if one is no method, or is CONNECT, which is a tunnel and no request.
    pub fn methods<'a>(
        mut self,
        methods: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, Error> {
        for method in methods {
            let method = read_method(method)?;
            if !self.methods.contains(&method) {
                self.methods.push(method);
            }
        }
        Ok(self)
    }

    /// Names paths, in the grammar of [`PathPattern`].
    ///
    /// # Errors
    ///
    /// `Invalid` if one is no path pattern.
    pub fn paths<'a>(mut self, paths: impl IntoIterator<Item = &'a str>) -> Result<Self, Error> {
        for path in paths {
            let path = PathPattern::parse(path)?;
            if !self.paths.contains(&path) {
                self.paths.push(path);
            }
        }
        Ok(self)
    }

    /// Lists the methods, in upper case; none means any.
    pub fn method_list(&self) -> impl Iterator<Item = &str> {
        self.methods.iter().map(AsRef::as_ref)
    }

    /// Lists the paths; none means any.
    pub fn path_list(&self) -> &[PathPattern] {
        &self.paths
    }

    /// Whether it names nothing and so is about every request.
    pub(super) fn is_empty(&self) -> bool {
        self.methods.is_empty() && self.paths.is_empty()
    }

    /// Tells whether a request is meant, or what keeps that from being told.
    pub(super) fn fits(
        &self,
        request: &RequestLine,
        reading: Reading,
    ) -> Result<bool, &'static str> {
        if !self.methods.is_empty() {
            let asked = request.method()?;
            if !self
                .methods
                .iter()
                .any(|method| reading.same(method, asked))
            {
                return Ok(false);
            }
        }
        if self.paths.is_empty() {
            return Ok(true);
        }
        let asked = request.path()?;
        Ok(self.paths.iter().any(|path| path.fits(asked, reading)))
    }
}

fn read_method(text: &str) -> Result<Box<str>, Error> {
    let wrong = |reason: &'static str| {
        Error::invalid(format!("read method `{}`", text.escape_debug()), reason)
    };
    match text.to_ascii_uppercase() {
        method if !is_token(&method) => Err(wrong("it is not a token (RFC 9110, 5.6.2)")),
        method if method == "CONNECT" => Err(wrong("it asks for a tunnel; name the host alone")),
        method => Ok(method.into()),
    }
}

impl fmt::Display for Requests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.methods.join(", "))?;
        let paths: Vec<_> = self.paths.iter().map(PathPattern::to_string).collect();
        if !self.methods.is_empty() && !paths.is_empty() {
            f.write_str(" ")?;
        }
        f.write_str(&paths.join(", "))
    }
}

/// A pattern for paths.
///
/// | pattern | fits |
/// |---|---|
/// | `/a/b` | that path (in a block: also `/a/b/` and other ASCII case) |
/// | `/a/*/c`, `/a/v*.json` | any one segment that is not empty; any text within one segment |
/// | `/a/**` | everything below `/a/`, and `/a/` itself, but not `/a` (in a block: `/a` too) |
///
/// `**` stands only as the whole last segment, `*` at most once in a segment. Percent-encoding means what it
/// encodes: `/%61` is `/a`, and `%2A` is a star that fits only itself. What would be ambiguous in a request
/// is an error here.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PathPattern {
    segments: Box<[Segment]>,
    deep: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Segment {
    Exact(Box<str>),
    Around(Box<str>, Box<str>),
}

impl PathPattern {
    /// Reads a pattern.
    ///
    /// # Errors
    ///
    /// `Invalid` with the reason.
    pub fn parse(text: &str) -> Result<Self, Error> {
        Self::read(text).map_err(|reason| {
            Error::invalid(format!("read path `{}`", text.escape_debug()), reason)
        })
    }

    fn read(text: &str) -> Result<Self, &'static str> {
        let inner = text.strip_prefix('/').ok_or("it does not begin with `/`")?;
        let (inner, deep) = match inner.strip_suffix("**") {
            Some("") => ("", true),
            Some(before) if before.ends_with('/') => (&before[..before.len() - 1], true),
            _ => (inner, false),
        };
        let parts: Vec<&str> = inner.split('/').collect();
        let empty = |at: usize| parts[at].is_empty() && (deep || at + 1 < parts.len());
        if !(deep && inner.is_empty()) && (0..parts.len()).any(empty) {
            return Err("it has an empty segment");
        }
        let segments = match inner.is_empty() && deep {
            true => Box::default(),
            false => parts
                .into_iter()
                .map(read_segment)
                .collect::<Result<_, _>>()?,
        };
        Ok(Self { segments, deep })
    }

    pub(super) fn fits(&self, path: &RequestPath, reading: Reading) -> bool {
        match reading {
            Reading::Narrow => self.fits_narrowly(path),
            Reading::Wide => self.fits_widely(path),
        }
    }

    fn fits_narrowly(&self, path: &RequestPath) -> bool {
        let mut rest = path.segments();
        let mut same = |segment: &Segment| {
            rest.next()
                .is_some_and(|asked| segment.fits(asked, Reading::Narrow))
        };
        self.segments.iter().all(&mut same) && rest.next().is_some() == self.deep
    }

    /// A slash at the end says nothing here, in the pattern or in the path.
    fn fits_widely(&self, path: &RequestPath) -> bool {
        let mut rest = path.segments().filter(|segment| !segment.is_empty());
        let named = self.segments.iter().filter(|segment| !segment.is_empty());
        for segment in named {
            if !rest
                .next()
                .is_some_and(|asked| segment.fits(asked, Reading::Wide))
            {
                return false;
            }
        }
        self.deep || rest.next().is_none()
    }
}

/// Reads one segment of a pattern.
fn read_segment(text: &str) -> Result<Segment, &'static str> {
    let Some((head, tail)) = text.split_once('*') else {
        let exact = decode(text)?;
        return match exact.ends_with(['.', ' ']) {
            true => Err("a segment is `.` or `..`, or ends in a dot or a space"),
            false => Ok(Segment::Exact(exact.into())),
        };
    };
    if tail.contains('*') {
        return Err("`*` stands once in a segment, `**` only as the whole last one");
    }
    Ok(Segment::Around(decode(head)?.into(), decode(tail)?.into()))
}

impl Segment {
    fn is_empty(&self) -> bool {
        matches!(self, Self::Exact(text) if text.is_empty())
    }

    fn fits(&self, asked: &str, reading: Reading) -> bool {
        match self {
            Self::Exact(text) => reading.same(text, asked),
            Self::Around(head, tail) => {
                let long = !asked.is_empty() && asked.len() >= head.len() + tail.len();
                let start = asked.get(..head.len());
                let end = asked
                    .len()
                    .checked_sub(tail.len())
                    .and_then(|at| asked.get(at..));
                long && start.is_some_and(|start| reading.same(head, start))
                    && end.is_some_and(|end| reading.same(tail, end))
            }
        }
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for segment in &self.segments {
            match segment {
                Segment::Exact(text) => write!(f, "/{}", Encoded(text))?,
                Segment::Around(head, tail) => write!(f, "/{}*{}", Encoded(head), Encoded(tail))?,
            }
        }
        f.write_str(if self.deep { "/**" } else { "" })
    }
}

/// A decoded segment as it is written: stars and everything unusual encoded.
struct Encoded<'a>(&'a str);

impl fmt::Display for Encoded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0.bytes() {
            match byte {
                b'%' | b'*' | b' ' | 0x7f.. | 0..b' ' => write!(f, "%{byte:02X}")?,
                _ => write!(f, "{}", char::from(byte))?,
            }
        }
        Ok(())
    }
}

impl FromStr for PathPattern {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::parse(text)
    }
}

#[cfg(test)]
mod tests;
