//! Certificates as a PKCS #12 file that Java takes for a trust store (RFC 7292).
//!
//! Java has no environment variable for PEM files, and its own store needs its own tool. PKCS #12 is the form that
//! every Java since 8 reads, and without secrets in it neither encryption nor a password: one list of certificates, each
//! with the attribute by which Java knows that it is there to be trusted.

use rustls::pki_types::{CertificateDer, pem::PemObject};
#[cfg(test)]
use yasna::ASN1Result;
use yasna::{DERWriter, Tag, models::ObjectIdentifier};

/// The most certificates that are taken over; systems come with about 150.
const MAX_CERTIFICATES: usize = 2000;

/// RFC 2315: data.
const DATA: &[u64] = &[1, 2, 840, 113_549, 1, 7, 1];
/// RFC 7292, 4.2.3: a bag with a certificate.
const CERT_BAG: &[u64] = &[1, 2, 840, 113_549, 1, 12, 10, 1, 3];
/// RFC 2985: an X.509 certificate.
const X509: &[u64] = &[1, 2, 840, 113_549, 1, 9, 22, 1];
/// RFC 2985: friendlyName, which Java uses as alias.
const FRIENDLY_NAME: &[u64] = &[1, 2, 840, 113_549, 1, 9, 20];
/// Oracle's trustedKeyUsage.
const TRUSTED_KEY_USAGE: &[u64] = &[2, 16, 840, 1, 113_894, 746_875, 1, 1];
/// RFC 5280, 4.2.1.12: anyExtendedKeyUsage.
const ANY_USAGE: &[u64] = &[2, 5, 29, 37, 0];

/// Makes a store of all certificates in a PEM text. What cannot be decoded is left out.
pub(super) fn from_pem(pem: &[u8]) -> Vec<u8> {
    let certificates = CertificateDer::pem_slice_iter(pem).take(MAX_CERTIFICATES);
    let certificates: Vec<_> = certificates.filter_map(Result::ok).collect();
    yasna::construct_der(|writer| store(writer, &certificates))
}

fn store(writer: DERWriter<'_>, certificates: &[CertificateDer<'_>]) {
    let bags = yasna::construct_der(|writer| {
        writer.write_sequence_of(|bags| {
            for (index, certificate) in certificates.iter().enumerate() {
                bag(bags.next(), certificate, &format!("sandbox-{index}"));
            }
        });
    });
    let safes = yasna::construct_der(|writer| {
        writer.write_sequence(|safes| content(safes.next(), &bags));
    });
    writer.write_sequence(|pfx| {
        pfx.next().write_u8(3);
        content(pfx.next(), &safes);
    });
}

/// ContentInfo with plain data.
fn content(writer: DERWriter<'_>, data: &[u8]) {
    writer.write_sequence(|content| {
        content.next().write_oid(&oid(DATA));
        content
            .next()
            .write_tagged(Tag::context(0), |writer| writer.write_bytes(data));
    });
}

fn bag(writer: DERWriter<'_>, certificate: &[u8], name: &str) {
    writer.write_sequence(|bag| {
        bag.next().write_oid(&oid(CERT_BAG));
        bag.next().write_tagged(Tag::context(0), |writer| {
            writer.write_sequence(|cert| {
                cert.next().write_oid(&oid(X509));
                cert.next()
                    .write_tagged(Tag::context(0), |writer| writer.write_bytes(certificate));
            });
        });
        bag.next().write_set_of(|attributes| {
            attribute(attributes.next(), FRIENDLY_NAME, |value| {
                value.write_bmp_string(name)
            });
            attribute(attributes.next(), TRUSTED_KEY_USAGE, |value| {
                value.write_oid(&oid(ANY_USAGE))
            });
        });
    });
}

fn attribute(writer: DERWriter<'_>, kind: &[u64], value: impl FnOnce(DERWriter<'_>)) {
    writer.write_sequence(|attribute| {
        attribute.next().write_oid(&oid(kind));
        attribute.next().write_set(|values| value(values.next()));
    });
}

fn oid(parts: &[u64]) -> ObjectIdentifier {
    ObjectIdentifier::from_slice(parts)
}

/// Reads back the certificates of a store.
#[cfg(test)]
pub(super) fn read(store: &[u8]) -> ASN1Result<Vec<Vec<u8>>> {
    fn data(reader: yasna::BERReader<'_, '_>) -> ASN1Result<Vec<u8>> {
        reader.read_sequence(|content| {
            assert_eq!(content.next().read_oid()?, oid(DATA));
            content
                .next()
                .read_tagged(Tag::context(0), |reader| reader.read_bytes())
        })
    }
    let safes = yasna::parse_der(store, |reader| {
        reader.read_sequence(|pfx| {
            assert_eq!(pfx.next().read_u8()?, 3);
            data(pfx.next())
        })
    })?;
    let bags = yasna::parse_der(&safes, |reader| {
        reader.read_sequence(|safes| data(safes.next()))
    })?;
    yasna::parse_der(&bags, |reader| {
        reader.collect_sequence_of(|bag| {
            bag.read_sequence(|bag| {
                assert_eq!(bag.next().read_oid()?, oid(CERT_BAG));
                let certificate = bag.next().read_tagged(Tag::context(0), |reader| {
                    reader.read_sequence(|cert| {
                        assert_eq!(cert.next().read_oid()?, oid(X509));
                        cert.next()
                            .read_tagged(Tag::context(0), |reader| reader.read_bytes())
                    })
                })?;
                bag.next().read_der()?;
                Ok(certificate)
            })
        })
    })
}
