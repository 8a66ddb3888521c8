//! What makes clients inside trust a sandbox's authority.
//!
//! There is no one place. OpenSSL, Go and rustls read the distribution's bundle or the file that `SSL_CERT_FILE` names;
//! Python, Node, curl, git, cargo and Java each have a variable of their own, and some bring their own roots. So the
//! authority goes into the distribution's bundle, where there is one, and into files in [`FOLDER`] that the
//! [`variables`] name. What replaces a client's roots gets the distribution's and the authority's together,
//! because hosts that are not inspected show their own certificates.
//!
//! | client | learns it from |
//! |---|---|
//! | OpenSSL, Go, Ruby, rustls, uv, .NET | the bundle; `SSL_CERT_FILE` |
//! | Node, Deno | `NODE_EXTRA_CA_CERTS`, `DENO_CERT`: beside their own roots |
//! | requests, pip, aws, gRPC | `REQUESTS_CA_BUNDLE`, `PIP_CERT`, `AWS_CA_BUNDLE`, `GRPC_DEFAULT_SSL_ROOTS_FILE_PATH` |
//! | curl, git, cargo | `CURL_CA_BUNDLE`, `GIT_SSL_CAINFO`, `CARGO_HTTP_CAINFO` |
//! | Java | `JAVA_TOOL_OPTIONS` with a PKCS #12 store |
//! | programs that clear their environment | the bundle alone |
//! | Rust with webpki-roots, Firefox, pinned clients | nothing: they need a bypass |
//! | containers inside | nothing by themselves: mount [`FOLDER`] and pass the variables on |

use super::truststore;

/// Where the files lie inside.
pub const FOLDER: &str = "/run/sandbox/trust";
/// The authority alone, for clients that add it to their roots.
pub const AUTHORITY: &str = "/run/sandbox/trust/authority.pem";
/// The distribution's roots and the authority.
pub const BUNDLE: &str = "/run/sandbox/trust/bundle.pem";
/// The same as a PKCS #12 store without a password.
pub const TRUST_STORE: &str = "/run/sandbox/trust/truststore.p12";

/// Where distributions keep their bundle: Debian, Alpine and Arch; Fedora; openSUSE; Alpine's OpenSSL. The first that is
/// there counts.
pub const SYSTEM_BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// The longest bundle that is read, in bytes: today's have about 220 KiB.
pub const MAX_BUNDLE: u64 = 4 << 20;

/// The variable to which others may have added, too.
const JAVA: &str = "JAVA_TOOL_OPTIONS";
/// What marks our part of a distribution's bundle, so that the next start replaces it.
const BEGIN: &str = "# sandbox egress inspection: begin\n";
const END: &str = "# sandbox egress inspection: end\n";

/// Returns the variables and their values.
pub fn variables() -> Vec<(&'static str, String)> {
    let bundle = [
        "SSL_CERT_FILE",
        "REQUESTS_CA_BUNDLE",
        "PIP_CERT",
        "CURL_CA_BUNDLE",
        "CARGO_HTTP_CAINFO",
        "GIT_SSL_CAINFO",
        "AWS_CA_BUNDLE",
        "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
    ];
    let added = ["NODE_EXTRA_CA_CERTS", "DENO_CERT"];
    let java =
        format!("-Djavax.net.ssl.trustStore={TRUST_STORE} -Djavax.net.ssl.trustStoreType=PKCS12");
    let bundle = bundle.map(|name| (name, BUNDLE.to_owned()));
    let added = added.map(|name| (name, AUTHORITY.to_owned()));
    bundle
        .into_iter()
        .chain(added)
        .chain([(JAVA, java)])
        .collect()
}

/// Adds the variables to an environment. Java's options are added to those that are there; other variables that are there
/// already are kept.
pub fn add_variables(environment: &mut Vec<(String, String)>) {
    for (name, value) in variables() {
        match environment.iter_mut().find(|(present, _)| present == name) {
            Some((_, present)) if name == JAVA && !present.contains(TRUST_STORE) => {
                present.push(' ');
                present.push_str(&value);
            }
            Some(_) => {}
            None => environment.push((name.to_owned(), value)),
        }
    }
}

/// What is to be written inside.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Files {
    /// What goes into [`FOLDER`]: paths and contents, for everybody to read.
    pub own: Vec<(&'static str, Vec<u8>)>,
    /// What the distribution's bundle becomes; `None` if there is none.
    pub bundle: Option<Vec<u8>>,
}

/// Makes the files from the authority's certificate and the guest's own bundle, which is not trusted for anything but
/// to be given back to the guest.
pub fn files(authority: &str, bundle: Option<&[u8]>) -> Files {
    let extended = extend(bundle.unwrap_or_default(), authority);
    let store = truststore::from_pem(&extended);
    Files {
        own: vec![
            (AUTHORITY, authority.as_bytes().to_vec()),
            (TRUST_STORE, store),
            (BUNDLE, extended.clone()),
        ],
        bundle: bundle.map(|_| extended),
    }
}

/// Returns a bundle with this authority at its end, and no earlier one.
fn extend(bundle: &[u8], authority: &str) -> Vec<u8> {
    let mut out = bundle.to_vec();
    if let (Some(begin), Some(end)) = (position(&out, BEGIN), position(&out, END))
        && begin < end
    {
        out.drain(begin..end + END.len());
    }
    if !out.is_empty() && !out.ends_with(b"\n") {
        out.push(b'\n');
    }
    out.extend_from_slice([BEGIN, authority.trim_end(), "\n", END].concat().as_bytes());
    out
}

fn position(bytes: &[u8], text: &str) -> Option<usize> {
    bytes
        .windows(text.len())
        .position(|window| window == text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::Authority;
    use std::time::SystemTime;

    #[test]
    fn e75_the_bundle_holds_the_distributions_roots_and_one_authority() {
        let now = SystemTime::now();
        let [root, first, second] = [(); 3].map(|()| Authority::new(now).unwrap());
        let before = files(first.pem(), Some(root.pem().trim_end().as_bytes()));
        let after = files(second.pem(), before.bundle.as_deref());
        let text = String::from_utf8(after.bundle.clone().unwrap()).unwrap();
        assert!(text.starts_with(root.pem().trim_end()));
        assert!(text.contains(second.pem().trim_end()) && !text.contains(first.pem().trim_end()));
        assert_eq!(
            after,
            files(second.pem(), after.bundle.as_deref()),
            "a third time changes nothing"
        );
        let (_, store) = &after.own[1];
        assert_eq!(truststore::read(store).unwrap(), [root.der(), second.der()]);
    }

    #[test]
    fn e75_a_guest_without_a_bundle_gets_the_authority_alone() {
        let authority = Authority::new(SystemTime::now()).unwrap();
        let made = files(authority.pem(), None);
        assert_eq!(made.bundle, None);
        assert_eq!(truststore::read(&made.own[1].1).unwrap(), [authority.der()]);
    }

    #[test]
    fn a_hostile_bundle_is_given_back_and_nothing_more() {
        let authority = Authority::new(SystemTime::now()).unwrap();
        for bundle in [
            &b"\xff\0-----BEGIN CERTIFICATE-----"[..],
            END.as_bytes(),
            BEGIN.as_bytes(),
        ] {
            let made = files(authority.pem(), Some(bundle));
            assert!(made.bundle.unwrap().starts_with(&bundle[..1]));
        }
    }

    #[test]
    fn e75_every_variable_is_set_and_none_is_taken_away() {
        let mut environment = vec![
            ("PIP_CERT".to_owned(), "/mine".to_owned()),
            (JAVA.to_owned(), "-Xmx1g".to_owned()),
        ];
        add_variables(&mut environment);
        add_variables(&mut environment);
        let value = |name: &str| {
            environment
                .iter()
                .find(|(key, _)| key == name)
                .unwrap()
                .1
                .clone()
        };
        assert_eq!(value("PIP_CERT"), "/mine");
        assert_eq!(value("NODE_EXTRA_CA_CERTS"), AUTHORITY);
        assert!(value(JAVA).starts_with("-Xmx1g -Djavax.net.ssl.trustStore="));
        assert_eq!(value(JAVA).matches(TRUST_STORE).count(), 1);
        assert_eq!(environment.len(), variables().len());
    }
}
