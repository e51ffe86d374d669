//! Which Ingress rule takes a request.
//!
//! The host is looked up in sorted lists, the path in a tree of its elements; nothing is allocated, and the cost grows
//! with the logarithm of the hosts and the depth of the path, not with the number of rules.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::Arc,
};

use crate::{
    model::{
        ObjectKey, ObjectRef, ServiceKey,
        route::{self, BackendPort, Host, Ingress, PathKind},
    },
    proxy::{
        BackendId, Unserved, Why,
        precedence::{Precedence, elements},
    },
};

/// What of a request decides its route. All of it is borrowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestView<'a> {
    /// The authority as the client gave it, in any case, with or without a port; `None` when it gave none.
    pub host: Option<&'a str>,
    /// The path, without query, normalised as it will be forwarded.
    pub path: &'a str,
}

/// One path of one host, or one default backend, with where its requests go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The Ingress it comes from.
    pub ingress: ObjectKey,
    /// The Service it names.
    pub service: ServiceKey,
    /// The port it names.
    pub port: BackendPort,
    /// The backend, or why there is none.
    pub backend: Result<BackendId, Missing>,
}

/// Why a rule leads nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// The Service does not exist.
    Service,
    /// The Service has no TCP port of that name or number.
    Port,
}

/// Why no rule takes a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoRule {
    /// No rule names the host, and there is no default backend.
    Host,
    /// Rules name the host, but none of their paths match, and there is no default backend.
    Path,
    /// A rule without paths names the host, and there is no default backend.
    Default,
}

/// Every rule of every Ingress, arranged for lookup.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    exact: Hosts,
    wildcard: Hosts,
    any: Option<HostRules>,
    default: Option<Arc<Rule>>,
}

/// One rule as `RouteTable::rules` lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed<'a> {
    /// The hosts it takes; `None` for the default backend of every host.
    pub host: Option<Host>,
    /// The path as its Ingress writes it, and how it is compared; `None` for a default backend.
    pub path: Option<(&'a str, PathKind)>,
    /// The rule.
    pub rule: &'a Rule,
}

/// Names in ascending order of their bytes, each with its rules.
type Hosts = Vec<(Box<str>, HostRules)>;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct HostRules {
    exact: BTreeMap<Box<str>, Arc<Rule>>,
    /// A tree in an array, because a path may be deeper than a stack. The first node is the root, if there is any.
    prefixes: Vec<Node>,
    default: Option<Arc<Rule>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Node {
    children: BTreeMap<Box<str>, usize>,
    /// The prefix as written, and its rule.
    rule: Option<(Box<str>, Arc<Rule>)>,
}

impl Rules {
    /// Arranges the rules of every Ingress; `resolve` finds the backend that a rule names. Rules that another one
    /// shadows are left out and reported.
    pub(super) fn compile<'a>(
        ingresses: impl Iterator<Item = &'a Ingress>,
        mut resolve: impl FnMut(&route::Backend) -> Result<BackendId, Missing>,
    ) -> (Self, Vec<Unserved>) {
        let mut claims: Vec<Claim<'a>> = ingresses.flat_map(claims).collect();
        claims.sort_by(|one, other| other.precedence.cmp(&one.precedence));

        let mut unserved = Vec::new();
        let mut hosts: BTreeMap<&Host, HostRules> = BTreeMap::new();
        let mut rules = Self::default();
        for claim in claims {
            let host_rules = claim.host.map(|host| hosts.entry(host).or_default());
            let Some(backend) = claim.backend else { continue };
            let rule = Arc::new(Rule {
                ingress: claim.ingress.key.clone(),
                service: backend.service.clone(),
                port: backend.port.clone(),
                backend: resolve(backend),
            });
            if let Err(missing) = rule.backend {
                unserved.push(claim.unserved(missing.why(backend)));
            }
            let taken = match (host_rules, claim.path) {
                (Some(host), Some((path, PathKind::Exact))) => host.add_exact(path, rule),
                (Some(host), Some((path, PathKind::Prefix))) => host.add_prefix(path, rule),
                (Some(host), None) => add_default(&mut host.default, rule),
                (None, _) => add_default(&mut rules.default, rule),
            };
            if let Err(by) = taken {
                unserved.extend(claim.shadowed(by));
            }
        }
        for (host, host_rules) in hosts {
            match host {
                // A `BTreeMap` of hosts yields the names of each kind in ascending order already.
                Host::Exact(name) => rules.exact.push((name.as_str().into(), host_rules)),
                Host::Wildcard(suffix) => rules.wildcard.push((suffix.as_str().into(), host_rules)),
                Host::Any => rules.any = Some(host_rules),
            }
        }
        (rules, unserved)
    }

    /// The rule that takes this request.
    pub fn find(&self, request: &RequestView<'_>) -> Result<&Rule, NoRule> {
        let claimed = self.host_rules(request.host.map(host_name).unwrap_or_default());
        let found = claimed.and_then(|host| host.find(request.path)).or(self.default.as_ref());
        found.map(Arc::as_ref).ok_or(match claimed {
            None => NoRule::Host,
            Some(host) if host.exact.is_empty() && host.prefixes.is_empty() => NoRule::Default,
            Some(_) => NoRule::Path,
        })
    }

    /// Every rule in force, by host and path.
    pub fn list(&self) -> impl Iterator<Item = Listed<'_>> {
        let exact = self.exact.iter().map(|(name, rules)| (Host::Exact(name.to_string()), rules));
        let wildcard = self.wildcard.iter().map(|(suffix, rules)| (Host::Wildcard(suffix.to_string()), rules));
        let any = self.any.iter().map(|rules| (Host::Any, rules));
        let of_hosts = exact.chain(wildcard).chain(any).flat_map(|(host, rules)| rules.list(host));
        let default = self.default.iter().map(|rule| Listed { host: None, path: None, rule });
        of_hosts.chain(default)
    }

    fn host_rules(&self, host: &str) -> Option<&HostRules> {
        let wildcard = || {
            let (label, suffix) = host.split_once('.')?;
            if label.is_empty() { None } else { find_host(&self.wildcard, suffix) }
        };
        find_host(&self.exact, host).or_else(wildcard).or(self.any.as_ref())
    }
}

/// A host without its port and without the dot that ends a fully qualified name.
pub fn host_name(authority: &str) -> &str {
    let name = match authority.strip_prefix('[') {
        Some(bracketed) => bracketed.split_once(']').map_or(bracketed, |(address, _)| address),
        None => authority.split_once(':').map_or(authority, |(name, _)| name),
    };
    name.strip_suffix('.').unwrap_or(name)
}

fn find_host<'a>(hosts: &'a Hosts, host: &str) -> Option<&'a HostRules> {
    // Nearly every client sends lower case, and then whole words are compared.
    let folded = |name: &str| name.bytes().cmp(host.bytes().map(|byte| byte.to_ascii_lowercase()));
    let index = if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        hosts.binary_search_by(|(name, _)| folded(name))
    } else {
        hosts.binary_search_by(|(name, _)| name.as_bytes().cmp(host.as_bytes()))
    };
    index.ok().and_then(|index| hosts.get(index)).map(|(_, rules)| rules)
}

impl HostRules {
    fn find(&self, path: &str) -> Option<&Arc<Rule>> {
        self.exact.get(path).or_else(|| self.find_prefix(path)).or(self.default.as_ref())
    }

    fn find_prefix(&self, path: &str) -> Option<&Arc<Rule>> {
        let mut node = self.prefixes.first()?;
        let mut longest = node.rule.as_ref();
        for element in elements(path) {
            let Some(child) = node.children.get(element).and_then(|index| self.prefixes.get(*index)) else { break };
            node = child;
            longest = node.rule.as_ref().or(longest);
        }
        longest.map(|(_, rule)| rule)
    }

    /// Fails with the Ingress that already has this path.
    fn add_exact(&mut self, path: &str, rule: Arc<Rule>) -> Result<(), ObjectKey> {
        match self.exact.entry(path.into()) {
            Entry::Occupied(taken) => Err(taken.get().ingress.clone()),
            Entry::Vacant(free) => {
                free.insert(rule);
                Ok(())
            }
        }
    }

    /// Fails with the Ingress that already has this prefix.
    fn add_prefix(&mut self, path: &str, rule: Arc<Rule>) -> Result<(), ObjectKey> {
        if self.prefixes.is_empty() {
            self.prefixes.push(Node::default());
        }
        let mut at = 0;
        for element in elements(path) {
            let next = self.prefixes.len();
            let known = self.prefixes.get(at).and_then(|node| node.children.get(element)).copied();
            at = known.unwrap_or_else(|| {
                if let Some(node) = self.prefixes.get_mut(at) {
                    node.children.insert(element.into(), next);
                }
                self.prefixes.push(Node::default());
                next
            });
        }
        match self.prefixes.get_mut(at).map(|node| &mut node.rule) {
            Some(Some((_, by))) => Err(by.ingress.clone()),
            Some(free) => {
                *free = Some((path.into(), rule));
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn list(&self, host: Host) -> impl Iterator<Item = Listed<'_>> {
        let exact = self.exact.iter().map(|(path, rule)| (Some((path.as_ref(), PathKind::Exact)), rule));
        let prefixes = self.prefixes.iter().filter_map(|node| node.rule.as_ref());
        let prefixes = prefixes.map(|(path, rule)| (Some((path.as_ref(), PathKind::Prefix)), rule));
        let default = self.default.iter().map(|rule| (None, rule));
        let all = exact.chain(prefixes).chain(default);
        all.map(move |(path, rule)| Listed { host: Some(host.clone()), path, rule })
    }
}

fn add_default(default: &mut Option<Arc<Rule>>, rule: Arc<Rule>) -> Result<(), ObjectKey> {
    match default {
        Some(by) => Err(by.ingress.clone()),
        None => {
            *default = Some(rule);
            Ok(())
        }
    }
}

/// What one part of an Ingress lays claim to.
struct Claim<'a> {
    ingress: &'a Ingress,
    /// `None` for what no host claims.
    host: Option<&'a Host>,
    /// `None` for what no path takes.
    path: Option<(&'a str, PathKind)>,
    /// `None` for a rule without paths in an Ingress without a default backend: it claims its host all the same.
    backend: Option<&'a route::Backend>,
    precedence: Precedence<'a>,
}

fn claims(ingress: &Ingress) -> Vec<Claim<'_>> {
    let mut claims = Vec::new();
    for (number, rule) in ingress.rules.iter().enumerate() {
        let host = Some(&rule.host);
        for (index, path) in rule.paths.iter().enumerate() {
            claims.push(Claim {
                ingress,
                host,
                path: Some((&path.path, path.kind)),
                backend: Some(&path.backend),
                precedence: Precedence::of_path(ingress, &rule.host, path.kind, &path.path, (number, index)),
            });
        }
        // One Ingress may name a host in several rules; it has one default backend for it all the same.
        if ingress.rules.iter().position(|other| other.host == rule.host) == Some(number) {
            claims.push(Claim {
                ingress,
                host,
                path: None,
                backend: ingress.default_backend.as_ref(),
                precedence: Precedence::of_default(ingress, &rule.host, (number, rule.paths.len())),
            });
        }
    }
    if let Some(backend) = &ingress.default_backend {
        claims.push(Claim {
            ingress,
            host: None,
            path: None,
            backend: Some(backend),
            precedence: Precedence::of_leftover(ingress),
        });
    }
    claims
}

impl Claim<'_> {
    fn unserved(&self, why: Why) -> Unserved {
        Unserved { object: ObjectRef::ingress(&self.ingress.key), generation: self.ingress.generation, why }
    }

    /// What to report when the Ingress `by` already has what this claims.
    fn shadowed(&self, by: ObjectKey) -> Option<Unserved> {
        match (self.host, self.path) {
            (host, Some((path, kind))) => {
                let host = host.cloned().unwrap_or(Host::Any);
                Some(self.unserved(Why::PathTaken { host, path: path.to_owned(), kind, by }))
            }
            (Some(host), None) => Some(self.unserved(Why::DefaultBackendTaken { host: Some(host.clone()), by })),
            // The default backend of an Ingress with rules still serves what is left of its own hosts.
            (None, None) if !self.ingress.rules.is_empty() => None,
            (None, None) => Some(self.unserved(Why::DefaultBackendTaken { host: None, by })),
        }
    }
}

impl Missing {
    fn why(self, backend: &route::Backend) -> Why {
        let service = backend.service.clone();
        match self {
            Self::Service => Why::ServiceMissing { service },
            Self::Port => Why::PortMissing { service, port: backend.port.clone() },
        }
    }
}

#[cfg(test)]
mod tests;
