//! Secret: the password of a peer, and nothing else of it. Whether there is one only matters where a peer names it.

use std::str;

use ferrogate_core::{model::peer::Key, snapshot::PasswordFault};
use k8s_openapi::api::core::v1::Secret;

use crate::objects::Fact;

/// The type of Secrets that hold a password.
pub const BASIC_AUTH: &str = "kubernetes.io/basic-auth";

/// Reads a Secret.
pub fn read(object: Secret) -> Fact {
    Fact::Secret(password(object))
}

fn password(object: Secret) -> Result<Key, PasswordFault> {
    // As an API server reads a Secret without a type.
    let kind = object.type_.unwrap_or_else(|| "Opaque".to_owned());
    if kind != BASIC_AUTH {
        return Err(PasswordFault::WrongType { kind });
    }
    let said = object.string_data.unwrap_or_default().remove("password").map(String::into_bytes);
    let bytes = said.or_else(|| object.data.unwrap_or_default().remove("password").map(|bytes| bytes.0));
    let bytes = bytes.ok_or(PasswordFault::NoKey)?;
    let text = str::from_utf8(&bytes).map_err(|_| PasswordFault::NotText)?;
    Key::new(text).ok_or(PasswordFault::Length { bytes: bytes.len() })
}
