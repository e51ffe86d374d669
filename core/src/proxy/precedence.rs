//! The order between Ingress rules that take the same request, as an [`Ord`].

use std::cmp::Reverse;

use crate::model::{
    ObjectKey,
    route::{Host, Ingress, PathKind},
};

/// How strongly a rule claims a request; of the rules that match, the greatest wins.
///
/// The fields stand in the order in which they decide: first the host, then the path, then the age. A host that is
/// named more precisely therefore keeps its requests even when none of its paths match and a wildcard's would have:
/// what remains for it then is its default backend.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Precedence<'a> {
    /// How precisely the host is named.
    pub host: HostRank,
    /// How precisely the path is named.
    pub path: PathRank,
    /// Older rules before younger ones.
    pub age: Reverse<Age<'a>>,
}

/// How precisely a rule names its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HostRank {
    /// Not at all.
    Any,
    /// One label is free.
    Wildcard,
    /// Completely.
    Exact,
}

/// How precisely a rule names its path.
///
/// All prefixes that match one path are prefixes of each other, so that counting elements compares their lengths; an
/// exact path is never shorter than a prefix that matches beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PathRank {
    /// It is a default backend that answers for hosts which its own Ingress does not name, though it names some.
    Elsewhere,
    /// It is a default backend: what is left over.
    Default,
    /// By so many leading elements.
    Prefix {
        /// Elements between slashes; 0 for `/`.
        elements: usize,
    },
    /// Completely.
    Exact,
}

/// The age of a rule; the smaller is the older. Where the source knows no times, names decide.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Age<'a> {
    /// `metadata.creationTimestamp` of its Ingress in seconds since 1970.
    pub created: i64,
    /// Namespace and name of its Ingress.
    pub ingress: &'a ObjectKey,
    /// Where it stands in its Ingress: number of the rule, number of the path.
    pub position: (usize, usize),
}

impl<'a> Precedence<'a> {
    /// The precedence of the path at this position of an Ingress.
    pub fn of_path(ingress: &'a Ingress, host: &Host, kind: PathKind, path: &str, position: (usize, usize)) -> Self {
        let path = match kind {
            PathKind::Exact => PathRank::Exact,
            PathKind::Prefix => PathRank::Prefix { elements: elements(path).count() },
        };
        Self { host: HostRank::of(host), path, age: Reverse(Age::new(ingress, position)) }
    }

    /// The precedence of the default backend of an Ingress for one of its hosts.
    pub fn of_default(ingress: &'a Ingress, host: &Host, position: (usize, usize)) -> Self {
        Self { host: HostRank::of(host), path: PathRank::Default, age: Reverse(Age::new(ingress, position)) }
    }

    /// The precedence of the default backend of an Ingress for what no rule at all takes. One without rules exists
    /// for nothing else and comes first.
    pub fn of_leftover(ingress: &'a Ingress) -> Self {
        let path = if ingress.rules.is_empty() { PathRank::Default } else { PathRank::Elsewhere };
        Self { host: HostRank::Any, path, age: Reverse(Age::new(ingress, (ingress.rules.len(), 0))) }
    }
}

impl HostRank {
    /// The rank of a host.
    pub fn of(host: &Host) -> Self {
        match host {
            Host::Any => Self::Any,
            Host::Wildcard(_) => Self::Wildcard,
            Host::Exact(_) => Self::Exact,
        }
    }
}

impl<'a> Age<'a> {
    fn new(ingress: &'a Ingress, position: (usize, usize)) -> Self {
        Self { created: ingress.created, ingress: &ingress.key, position }
    }
}

/// The elements of a path between its slashes. Empty ones do not count, so that neither a trailing slash nor a
/// doubled one makes a difference to a prefix.
pub(super) fn elements(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|element| !element.is_empty())
}
