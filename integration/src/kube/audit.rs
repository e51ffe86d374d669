//! What service accounts asked of the API server, as its own audit log says.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::{Context, Result};
use serde::Deserialize;

/// Which requests are written down, and how much of each: who, what and the answer's code, for service accounts only.
pub const POLICY: &str = r"apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
omitManagedFields: true
rules:
  - level: Metadata
    userGroups: ['system:serviceaccounts']
  - level: None
";

/// One request and how it was answered.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Asked {
    /// Who asked: `system:serviceaccount:NAMESPACE:NAME`.
    pub user: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, ….
    pub verb: String,
    /// `RESOURCE.GROUP`, with `/SUBRESOURCE` where it is one; a path where it is no resource.
    pub what: String,
    /// Where; empty for all namespaces, and for what is in none.
    pub namespace: String,
    /// Of which object, if of one.
    pub name: String,
    /// The code of the answer.
    pub code: u16,
}

#[derive(Deserialize)]
struct Line {
    stage: String,
    verb: String,
    #[serde(rename = "requestURI")]
    request_uri: String,
    user: User,
    #[serde(rename = "objectRef", default)]
    object: Option<Object>,
    #[serde(rename = "responseStatus", default)]
    response: Option<Response>,
}

#[derive(Deserialize)]
struct User {
    username: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Object {
    resource: String,
    subresource: String,
    api_group: String,
    namespace: String,
    name: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Response {
    code: u16,
}

impl From<Line> for Asked {
    fn from(line: Line) -> Self {
        let Object { resource, subresource, api_group, namespace, name } = line.object.unwrap_or_default();
        let group = if api_group.is_empty() { String::new() } else { format!(".{api_group}") };
        let part = if subresource.is_empty() { String::new() } else { format!("/{subresource}") };
        let what = if resource.is_empty() { line.request_uri } else { format!("{resource}{group}{part}") };
        let code = line.response.unwrap_or_default().code;
        Self { user: line.user.username, verb: line.verb, what, namespace, name, code }
    }
}

/// Reads the log of an API server: every request that was answered, a watch when it began.
///
/// # Errors
/// When it cannot be read, or holds what is no line of such a log. A line that is still being written is left out.
pub fn read(log: &Path) -> Result<Vec<Asked>> {
    let text = fs::read_to_string(log).with_context(|| format!("reading {}", log.display()))?;
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let lines = whole.lines().map(|line| serde_json::from_str::<Line>(line).with_context(|| line.to_owned()));
    let mut asked = Vec::new();
    for line in lines {
        let line = line?;
        // A watch that runs is told of at its start, and once more at its end.
        let refused = line.response.as_ref().is_some_and(|response| response.code >= 400);
        let counts = if line.verb == "watch" && !refused { "ResponseStarted" } else { "ResponseComplete" };
        if line.stage == counts {
            asked.push(line.into());
        }
    }
    Ok(asked)
}

/// What requests have in common: the user's name, verb, what, and the code of the answer.
pub type Sort<'a> = (&'a str, &'a str, &'a str, u16);

/// How often each sort of request was made, most often first.
pub fn counted(asked: &[Asked]) -> Vec<(Sort<'_>, usize)> {
    let mut counts = BTreeMap::new();
    for one in asked {
        let user = one.user.rsplit(':').next().unwrap_or_default();
        *counts.entry((user, one.verb.as_str(), one.what.as_str(), one.code)).or_default() += 1;
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    counts
}

/// What was refused for want of a right, and never granted to the same user anywhere in the list.
pub fn never_granted(asked: impl Iterator<Item = Asked>) -> Vec<Asked> {
    let right = |one: &Asked| (one.user.clone(), one.verb.clone(), one.what.clone(), one.namespace.clone());
    let (mut granted, mut refused) = (BTreeSet::new(), BTreeSet::new());
    for one in asked {
        match one.code {
            403 => drop(refused.insert(one)),
            _ => drop(granted.insert(right(&one))),
        }
    }
    refused.into_iter().filter(|one| !granted.contains(&right(one))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_counts_once_and_a_line_that_is_not_finished_does_not() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let line = |stage: &str, verb: &str, code: u16| {
            format!(
                r#"{{"stage":"{stage}","verb":"{verb}","requestURI":"/x","user":{{"username":"system:serviceaccount:a:b"}},
                "objectRef":{{"resource":"services","subresource":"status","apiVersion":"v1","name":"web","namespace":"default"}},
                "responseStatus":{{"code":{code}}}}}"#
            )
            .replace('\n', "")
        };
        let lines = [
            line("ResponseStarted", "watch", 200),
            line("ResponseComplete", "watch", 200),
            line("ResponseComplete", "watch", 403),
            line("ResponseComplete", "patch", 200),
            line("ResponseComplete", "patch", 200),
        ];
        fs::write(file.path(), format!("{}\n{{\"stage\":", lines.join("\n"))).unwrap();

        let asked = read(file.path()).unwrap();

        let expected = [
            (("b", "patch", "services/status", 200), 2),
            (("b", "watch", "services/status", 200), 1),
            (("b", "watch", "services/status", 403), 1),
        ];
        assert_eq!(counted(&asked), expected);
    }
}
