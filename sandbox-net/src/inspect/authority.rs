//! The certificate authority of one sandbox, and the certificates that it signs.
//!
//! Its key is made when the sandbox starts, lives in this process's memory and dies with it; only the certificate
//! leaves it. Leaves hold for 24 hours less the hour that they begin early, for clocks that are behind, and are kept
//! in a bounded cache. They share one key, made beside the authority's: both lie in the same memory, so that a key for
//! each would protect nothing, and a leaf costs one signature.

use std::{
    fmt,
    num::NonZeroUsize,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use lru::LruCache;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SerialNumber,
};
use rustls::{
    crypto::ring::sign::any_ecdsa_type,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    sign::{CertifiedKey, SigningKey},
};
use sandbox_base::ErrorKind;

use crate::{Error, policy::Host};

/// How long ago a certificate begins to hold, for clocks that are behind.
const EARLY: Duration = Duration::from_secs(3600);
/// From the beginning of a leaf to its end.
const LEAF: Duration = Duration::from_secs(24 * 3600);
/// A kept leaf is used for this long, so that no connection starts with one that is about to end.
const FRESH: Duration = Duration::from_secs(12 * 3600);
/// From the making of an authority to its end: longer than any sandbox runs without a restart.
const AUTHORITY: Duration = Duration::from_secs(2 * 365 * 24 * 3600);
/// The leaves that are kept: about 1 KiB each.
const KEPT: NonZeroUsize = NonZeroUsize::new(256).expect("it is not zero");

/// The authority of one sandbox.
pub struct Authority {
    certificate: CertificateDer<'static>,
    pem: String,
    issuer: Issuer<'static, KeyPair>,
    leaf_key: KeyPair,
    signing: Arc<dyn SigningKey>,
    kept: Mutex<LruCache<Host, Kept>>,
}

struct Kept {
    since: SystemTime,
    leaf: Arc<CertifiedKey>,
}

impl Authority {
    /// Makes an authority whose certificates hold from about now on.
    ///
    /// # Errors
    ///
    /// `Io` if the system has no random numbers.
    pub fn new(now: SystemTime) -> Result<Self, Error> {
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = CertificateParams::default();
        let name = &mut params.distinguished_name;
        name.push(
            DnType::CommonName,
            format!("Sandbox {}", hex(&random::<4>()?)),
        );
        name.push(DnType::OrganizationName, "Sandbox egress inspection");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = (now - EARLY).into();
        params.not_after = (now + AUTHORITY).into();
        params.serial_number = Some(serial()?);
        let certificate = params.self_signed(&key).map_err(failed)?;
        let leaf_key = KeyPair::generate().map_err(failed)?;
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(leaf_key.serialize_der()));
        let signing = any_ecdsa_type(&der).map_err(failed)?;
        Ok(Self {
            pem: certificate.pem(),
            certificate: certificate.into(),
            issuer: Issuer::new(params, key),
            leaf_key,
            signing,
            kept: Mutex::new(LruCache::new(KEPT)),
        })
    }

    /// Returns its certificate in PEM, which is public.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Returns its certificate in DER.
    pub fn der(&self) -> &[u8] {
        &self.certificate
    }

    /// Returns a certificate for a host, which must be one that the policy lets through, and its key.
    pub(crate) fn leaf(&self, host: &Host, now: SystemTime) -> Result<Arc<CertifiedKey>, Error> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        // A clock that was set back makes a leaf anew, too.
        let is_fresh = |kept: &&Kept| now.duration_since(kept.since).is_ok_and(|age| age < FRESH);
        if let Some(found) = kept.get(host).filter(is_fresh) {
            return Ok(Arc::clone(&found.leaf));
        }
        let leaf = Arc::new(self.mint(host, now)?);
        let entry = Kept {
            since: now,
            leaf: Arc::clone(&leaf),
        };
        kept.put(host.clone(), entry);
        Ok(leaf)
    }

    fn mint(&self, host: &Host, now: SystemTime) -> Result<CertifiedKey, Error> {
        let name = match host {
            Host::Name(name) => name.as_str().to_owned(),
            Host::Address(address) => address.to_string(),
        };
        let mut params = CertificateParams::new([name]).map_err(failed)?;
        // A common name is at most 64 bytes, and nobody reads it: the name is in the alternative names.
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::OrganizationName, "Sandbox egress inspection");
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        params.not_before = (now - EARLY).into();
        params.not_after = (now - EARLY + LEAF).into();
        params.serial_number = Some(serial()?);
        let leaf = params
            .signed_by(&self.leaf_key, &self.issuer)
            .map_err(failed)?;
        Ok(CertifiedKey::new(
            vec![leaf.into()],
            Arc::clone(&self.signing),
        ))
    }
}

/// A number that no other certificate has (RFC 5280, 4.1.2.2): positive, 16 bytes.
fn serial() -> Result<SerialNumber, Error> {
    let mut bytes = random::<16>()?;
    bytes[0] = bytes[0] & 0x3f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn failed(error: impl fmt::Display) -> Error {
    Error::new(ErrorKind::Io, "make a certificate", error.to_string())
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Authority(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::{
        RootCertStore,
        client::{WebPkiServerVerifier, danger::ServerCertVerifier},
        pki_types::{ServerName, UnixTime},
    };

    const DAY: Duration = Duration::from_secs(24 * 3600);

    /// Whether a client that trusts the authority takes its leaf for a name at a time.
    fn holds(authority: &Authority, leaf: &CertifiedKey, name: &str, at: SystemTime) -> bool {
        let mut roots = RootCertStore::empty();
        roots.add(authority.certificate.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(roots.into(), provider);
        let at = UnixTime::since_unix_epoch(at.duration_since(SystemTime::UNIX_EPOCH).unwrap());
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let verified =
            verifier
                .build()
                .unwrap()
                .verify_server_cert(&leaf.cert[0], &[], &name, &[], at);
        verified.is_ok()
    }

    fn host(text: &str) -> Host {
        Host::parse(text).unwrap()
    }

    #[test]
    fn e74_a_leaf_holds_for_its_host_and_a_day_at_most() {
        let now = SystemTime::now();
        let authority = Authority::new(now).unwrap();
        let leaf = authority.leaf(&host("api.test"), now).unwrap();
        assert!(holds(&authority, &leaf, "api.test", now));
        assert!(
            holds(&authority, &leaf, "api.test", now - EARLY / 2),
            "a clock that is behind"
        );
        assert!(!holds(&authority, &leaf, "other.test", now));
        assert!(!holds(&authority, &leaf, "api.test", now + DAY));
        assert!(!holds(&authority, &leaf, "api.test", now - 2 * EARLY));
        let leaf = authority.leaf(&host("127.0.0.1"), now).unwrap();
        assert!(holds(&authority, &leaf, "127.0.0.1", now));
        let long = format!("{}.test", ["a".repeat(60), "b".repeat(60)].join("."));
        assert!(holds(
            &authority,
            &authority.leaf(&host(&long), now).unwrap(),
            &long,
            now
        ));
    }

    #[test]
    fn e74_another_sandboxs_authority_is_not_trusted() {
        let now = SystemTime::now();
        let (one, other) = (Authority::new(now).unwrap(), Authority::new(now).unwrap());
        let leaf = one.leaf(&host("api.test"), now).unwrap();
        assert!(!holds(&other, &leaf, "api.test", now));
    }

    #[test]
    fn e74_leaves_are_kept_made_anew_in_time_and_bounded() {
        let now = SystemTime::now();
        let authority = Authority::new(now).unwrap();
        let first = authority.leaf(&host("api.test"), now).unwrap();
        let again = authority.leaf(&host("api.test"), now + FRESH / 2).unwrap();
        assert!(Arc::ptr_eq(&first, &again));
        let later = authority.leaf(&host("api.test"), now + FRESH).unwrap();
        assert!(!Arc::ptr_eq(&first, &later));
        for index in 0..300 {
            authority
                .leaf(&host(&format!("h{index}.test")), now)
                .unwrap();
        }
        assert_eq!(authority.kept.lock().unwrap().len(), KEPT.get());
    }

    #[test]
    fn no_key_is_shown() {
        let authority = Authority::new(SystemTime::now()).unwrap();
        assert_eq!(format!("{authority:?}"), "Authority(..)");
        assert!(!authority.pem().contains("PRIVATE"));
    }
}
