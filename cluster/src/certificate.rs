//! The certificates of the webhook: an authority of our own, and what it signs for the webhook's Service.
//!
//! What is due is a plain function of the time and of what is kept; no clock is read here. All of it is kept in one
//! Secret, so that every replica serves the same. A new authority is first only trusted, beside the old one, and signs
//! when every API server has had time to hear of it: so no answer is ever signed by someone whom the caller does not
//! trust yet. A clock that is set forward or back makes certificates invalid that were valid, and is healed by the same
//! rule as their age.
//!
//! ```text
//!  authority  │ signs ···············│ renewal: a new one joins the bundle │
//!  next one   │                      │ trusted ───► signs ·················│
//!  leaf       │ ···│···│···│···│···│ ············ signed by the next one  │
//! ```

use std::{collections::BTreeMap, time::Duration};

use pem::{EncodeConfig, LineEnding};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData,
};
use sha2::{Digest, Sha256};
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, pem::Pem, time::ASN1Time};

/// Name of the Secret, and of the Service that leads to the webhook.
pub const NAME: &str = "ferrogate-webhook";

/// How many authorities are trusted at a time, at most.
const MAX_AUTHORITIES: usize = 3;

/// Seconds since 1970, as the clock of this machine has it.
pub type UnixTime = i64;

/// How long certificates last, and how early they are replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetimes {
    /// How long an authority lasts.
    pub authority: Duration,
    /// How long before its end the next one joins it.
    pub authority_renewal: Duration,
    /// How long a leaf lasts.
    pub leaf: Duration,
    /// How long before its end it is replaced.
    pub leaf_renewal: Duration,
    /// How long a new authority is only trusted before it signs.
    pub propagation: Duration,
    /// How far before its making a certificate begins to be valid, for clocks that go slow.
    pub backdate: Duration,
}

impl Default for Lifetimes {
    fn default() -> Self {
        let days = |days: u64| Duration::from_secs(days * 24 * 60 * 60);
        Self {
            authority: days(730),
            authority_renewal: days(180),
            leaf: days(90),
            leaf_renewal: days(30),
            propagation: Duration::from_secs(60 * 60),
            backdate: days(1),
        }
    }
}

/// What the Secret holds, as PEM; whether any of it is of use is another question.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Kept {
    /// `ca.crt`: every authority that is trusted, the newest first.
    pub bundle: String,
    /// `ca.key`: the key of the newest.
    pub authority_key: String,
    /// `tls.crt`: the leaf.
    pub leaf: String,
    /// `tls.key`: its key.
    pub leaf_key: String,
}

impl std::fmt::Debug for Kept {
    /// Without the keys.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kept").field("bundle", &self.bundle).field("leaf", &self.leaf).finish_non_exhaustive()
    }
}

const FIELDS: [&str; 4] = ["ca.crt", "ca.key", "tls.crt", "tls.key"];

impl Kept {
    /// As the data of a Secret has it. What is missing or no text is empty.
    pub fn of(data: &BTreeMap<String, Vec<u8>>) -> Self {
        let text = |field: &str| {
            let bytes = data.get(field).map(Vec::as_slice).unwrap_or_default();
            std::str::from_utf8(bytes).unwrap_or_default().to_owned()
        };
        let [bundle, authority_key, leaf, leaf_key] = FIELDS.map(text);
        Self { bundle, authority_key, leaf, leaf_key }
    }

    /// As the data of a Secret.
    pub fn data(&self) -> BTreeMap<String, Vec<u8>> {
        let texts = [&self.bundle, &self.authority_key, &self.leaf, &self.leaf_key];
        FIELDS.iter().zip(texts).map(|(field, text)| ((*field).to_owned(), text.clone().into_bytes())).collect()
    }
}

/// What has to be done about what is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Nothing before this time.
    Nothing {
        /// When to look again.
        until: UnixTime,
    },
    /// A new leaf, signed by the newest authority.
    Leaf,
    /// A new authority beside the ones there are; the leaf stays.
    Authority,
    /// A new authority and a leaf signed by it: nothing of what is kept can be served.
    Everything,
    /// Nothing new, but some authorities are of no use any more.
    Pruning,
}

/// Why no certificate could be made.
#[derive(Debug, thiserror::Error)]
#[error("no certificate could be made")]
pub struct MakeError(#[from] rcgen::Error);

/// What has to be done about what is kept, for a webhook of these names.
pub fn due(now: UnixTime, kept: &Kept, names: &[String], lifetimes: &Lifetimes) -> Due {
    let bundle = certificates(&kept.bundle);
    let authorities: Vec<_> = bundle.iter().filter_map(Authority::of).collect();
    let newest = authorities.first().filter(|newest| newest.is_valid(now) && newest.has_key(&kept.authority_key));
    let leaves = certificates(&kept.leaf);
    let leaf = leaves.first().and_then(|pem| pem.parse_x509().ok());
    let valid = authorities.iter().filter(|authority| authority.is_valid(now));
    let leaf = leaf.filter(|leaf| serves(now, leaf, &kept.leaf_key, names));
    let signer = leaf.as_ref().and_then(|leaf| valid.clone().find(|authority| authority.signed(leaf)));
    let (Some(newest), Some(leaf), Some(signer)) = (newest, &leaf, signer) else {
        // Without a leaf there is nothing to be careful about: whoever calls does not get through as it is.
        return if newest.is_some() { Due::Leaf } else { Due::Everything };
    };
    let renew_authority_at = newest.not_after.saturating_sub(seconds(lifetimes.authority_renewal));
    let may_sign_at = newest.made_at(lifetimes).saturating_add(seconds(lifetimes.propagation));
    let renew_leaf_at = match signer == newest {
        true => leaf.validity().not_after.timestamp().saturating_sub(seconds(lifetimes.leaf_renewal)),
        false => may_sign_at,
    };
    if renew_authority_at <= now {
        return Due::Authority;
    }
    if renew_leaf_at <= now {
        return Due::Leaf;
    }
    if valid.clone().count() < bundle.len() || bundle.len() > MAX_AUTHORITIES {
        return Due::Pruning;
    }
    let ends = valid.map(|authority| authority.not_after.saturating_add(1));
    Due::Nothing { until: ends.chain([renew_authority_at, renew_leaf_at]).min().unwrap_or(now) }
}

/// What is to be kept instead, after [`due`] said what has to be done.
///
/// # Errors
/// When the machine gives no randomness, or a name is none.
pub fn renewed(
    now: UnixTime,
    due: Due,
    kept: &Kept,
    names: &[String],
    lifetimes: &Lifetimes,
) -> Result<Kept, MakeError> {
    let mut next = kept.clone();
    if matches!(due, Due::Authority | Due::Everything) {
        let key = KeyPair::generate()?;
        next.bundle = authority(now, &key, lifetimes)? + &kept.bundle;
        next.authority_key = key.serialize_pem();
    }
    next.bundle = pruned(now, &next.bundle);
    if matches!(due, Due::Leaf | Due::Everything) {
        let key = KeyPair::generate()?;
        let issuer = Issuer::from_ca_cert_pem(&next.bundle, KeyPair::from_pem(&next.authority_key)?)?;
        next.leaf = leaf(now, &key, &issuer, names, lifetimes)?;
        next.leaf_key = key.serialize_pem();
    }
    Ok(next)
}

/// When the leaf ends to be valid.
pub fn not_after(kept: &Kept) -> Option<UnixTime> {
    let leaves = certificates(&kept.leaf);
    leaves.first()?.parse_x509().ok().map(|leaf| leaf.validity().not_after.timestamp())
}

/// The names by which an API server reaches the webhook in this namespace.
pub fn names(namespace: &str) -> Vec<String> {
    let service = format!("{NAME}.{namespace}.svc");
    vec![format!("{service}.cluster.local"), service]
}

/// What matters of an authority.
#[derive(Debug, PartialEq)]
struct Authority<'a> {
    certificate: X509Certificate<'a>,
    not_before: UnixTime,
    not_after: UnixTime,
}

impl<'a> Authority<'a> {
    fn of(pem: &'a Pem) -> Option<Self> {
        let certificate = pem.parse_x509().ok().filter(|certificate| certificate.is_ca())?;
        let (not_before, not_after) = (certificate.validity().not_before, certificate.validity().not_after);
        Some(Self { certificate, not_before: not_before.timestamp(), not_after: not_after.timestamp() })
    }

    fn is_valid(&self, now: UnixTime) -> bool {
        self.not_before <= now && now <= self.not_after
    }

    fn has_key(&self, pem: &str) -> bool {
        has_key(&self.certificate, pem)
    }

    fn signed(&self, leaf: &X509Certificate<'_>) -> bool {
        leaf.issuer().as_raw() == self.certificate.subject().as_raw()
            && leaf.verify_signature(Some(self.certificate.public_key())).is_ok()
    }

    fn made_at(&self, lifetimes: &Lifetimes) -> UnixTime {
        self.not_before.saturating_add(seconds(lifetimes.backdate))
    }
}

/// Whether a leaf can be served now under these names.
fn serves(now: UnixTime, leaf: &X509Certificate<'_>, key: &str, names: &[String]) -> bool {
    let validity = leaf.validity();
    let is_valid = validity.not_before.timestamp() <= now && now <= validity.not_after.timestamp();
    let said = leaf.subject_alternative_name().ok().flatten();
    let said: Vec<_> = said.iter().flat_map(|extension| &extension.value.general_names).collect();
    let is_named = |name: &String| said.iter().any(|one| matches!(one, GeneralName::DNSName(said) if said == name));
    is_valid && names.iter().all(is_named) && has_key(leaf, key)
}

fn has_key(certificate: &X509Certificate<'_>, pem: &str) -> bool {
    KeyPair::from_pem(pem).is_ok_and(|key| key.subject_public_key_info() == certificate.public_key().raw)
}

fn certificates(text: &str) -> Vec<Pem> {
    Pem::iter_from_buffer(text.as_bytes()).map_while(Result::ok).collect()
}

/// The authorities of a bundle that are of use, each once.
fn pruned(now: UnixTime, bundle: &str) -> String {
    let mut kept: Vec<String> = Vec::new();
    for pem in certificates(bundle) {
        let is_of_use = Authority::of(&pem).is_some_and(|authority| authority.is_valid(now));
        let text = pem_of(&pem);
        if is_of_use && !kept.contains(&text) {
            kept.push(text);
        }
    }
    kept.truncate(MAX_AUTHORITIES);
    kept.concat()
}

fn pem_of(certificate: &Pem) -> String {
    let lines = EncodeConfig::new().set_line_ending(LineEnding::LF);
    pem::encode_config(&pem::Pem::new("CERTIFICATE", certificate.contents.as_slice()), lines)
}

fn authority(now: UnixTime, key: &KeyPair, lifetimes: &Lifetimes) -> Result<String, rcgen::Error> {
    let mut params = params(now, lifetimes.authority, lifetimes)?;
    // A name of its own for each: of two with one name a client might try the wrong one.
    let digest = Sha256::digest(key.der_bytes());
    let digest: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    params.distinguished_name = name(&format!("{NAME}-ca {digest}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    Ok(params.self_signed(key)?.pem())
}

fn leaf(
    now: UnixTime,
    key: &KeyPair,
    issuer: &Issuer<'_, KeyPair>,
    names: &[String],
    lifetimes: &Lifetimes,
) -> Result<String, rcgen::Error> {
    let mut params = params(now, lifetimes.leaf, lifetimes)?;
    params.subject_alt_names = CertificateParams::new(names)?.subject_alt_names;
    params.distinguished_name = name(NAME);
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    Ok(params.signed_by(key, issuer)?.pem())
}

fn params(now: UnixTime, lifetime: Duration, lifetimes: &Lifetimes) -> Result<CertificateParams, rcgen::Error> {
    let time = |at: UnixTime| ASN1Time::from_timestamp(at).map_err(|_| rcgen::Error::Time);
    let mut params = CertificateParams::default();
    params.not_before = time(now.saturating_sub(seconds(lifetimes.backdate)))?.to_datetime();
    params.not_after = time(now.saturating_add(seconds(lifetime)))?.to_datetime();
    Ok(params)
}

fn name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name
}

fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
