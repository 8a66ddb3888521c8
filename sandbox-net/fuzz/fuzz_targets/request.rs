//! A path is ambiguous, or has nothing in it that origins read differently; a path pattern reads back as itself.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sandbox_net::policy::{PathPattern, RequestLine};

fuzz_target!(|text: &str| {
    let request = RequestLine::new("GET", text);
    if let Ok(path) = request.path() {
        let path = path.as_str();
        assert!(path.starts_with('/') && !path.contains("//"));
        assert!(!path.contains(['\\', ';', '#', '?']) && !path.contains(|c: char| c.is_ascii_control()));
        assert!(path.split('/').all(|segment| segment != "." && segment != ".."));
    }
    if let Ok(pattern) = PathPattern::parse(text) {
        assert_eq!(PathPattern::parse(&pattern.to_string()).unwrap(), pattern);
    }
});
