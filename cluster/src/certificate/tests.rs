//! The age of certificates on a clock that is set at will, judged as a strict client would.

use super::*;

const NOW: UnixTime = 1_800_000_000;
const DAY: i64 = 24 * 60 * 60;

fn names() -> Vec<String> {
    super::names("ferrogate-system")
}

fn due_at(now: UnixTime, kept: &Kept) -> Due {
    due(now, kept, &names(), &Lifetimes::default())
}

/// What is kept after everything that is due now is done.
fn settled(now: UnixTime, mut kept: Kept) -> Kept {
    for _ in 0..5 {
        match due_at(now, &kept) {
            Due::Nothing { until } => {
                assert!(until > now);
                return kept;
            }
            due => kept = renewed(now, due, &kept, &names(), &Lifetimes::default()).unwrap(),
        }
    }
    panic!("there is always something due");
}

fn made(now: UnixTime) -> Kept {
    settled(now, Kept::default())
}

fn count(bundle: &str) -> usize {
    certificates(bundle).len()
}

/// Whether a client that trusts only this bundle takes this leaf: names, times, signature, and the authority's own time.
fn trusts(now: UnixTime, bundle: &str, leaf: &str) -> bool {
    let (bundle, leaves) = (certificates(bundle), certificates(leaf));
    let Some(leaf) = leaves.first().and_then(|pem| pem.parse_x509().ok()) else { return false };
    let validity = leaf.validity();
    let is_valid = validity.not_before.timestamp() <= now && now <= validity.not_after.timestamp();
    let mut authorities = bundle.iter().filter_map(Authority::of);
    is_valid && authorities.any(|authority| authority.is_valid(now) && authority.signed(&leaf))
}

#[test]
fn the_first_certificate_serves_the_names_of_the_service() {
    let kept = made(NOW);

    assert!(trusts(NOW, &kept.bundle, &kept.leaf));
    assert_eq!(
        names(),
        ["ferrogate-webhook.ferrogate-system.svc.cluster.local", "ferrogate-webhook.ferrogate-system.svc"]
    );
    assert!(KeyPair::from_pem(&kept.leaf_key).is_ok());
    assert_eq!(not_after(&kept), Some(NOW + 90 * DAY));
    assert_eq!(Kept::of(&kept.data()), kept);
}

#[test]
fn a_leaf_is_replaced_a_month_before_its_end_and_the_authority_stays() {
    let kept = made(NOW);
    assert_eq!(due_at(NOW, &kept), Due::Nothing { until: NOW + 60 * DAY });
    assert!(matches!(due_at(NOW + 60 * DAY - 1, &kept), Due::Nothing { .. }));

    let later = settled(NOW + 60 * DAY, kept.clone());

    assert_ne!(later.leaf, kept.leaf);
    assert_eq!(later.bundle, kept.bundle);
    assert!(trusts(NOW + 60 * DAY, &kept.bundle, &later.leaf));
}

#[test]
fn in_ten_years_of_looking_once_a_week_no_client_ever_meets_a_leaf_it_does_not_trust() {
    let mut kept = made(NOW);
    let mut authorities = 0;
    for day in (0..3650).step_by(7) {
        let now = NOW + day * DAY;

        let next = settled(now, kept.clone());

        // The webhook may serve the old leaf or the new one, and the API server may have heard of either bundle.
        for (bundle, leaf) in [(&kept.bundle, &next.leaf), (&next.bundle, &kept.leaf), (&next.bundle, &next.leaf)] {
            assert!(trusts(now, bundle, leaf), "day {day}");
        }
        assert!(count(&next.bundle) <= 2, "day {day}");
        authorities += usize::from(next.authority_key != kept.authority_key);
        kept = next;
    }
    assert_eq!(authorities, 6);
}

#[test]
fn a_new_authority_is_trusted_for_a_while_before_it_signs() {
    let before = made(NOW);
    let at = NOW + 550 * DAY;
    let with_fresh_leaf = settled(at - DAY, before);
    assert_eq!(due_at(at, &with_fresh_leaf), Due::Authority);

    let joined = settled(at, with_fresh_leaf.clone());
    assert_eq!(joined.leaf, with_fresh_leaf.leaf);
    assert_eq!(count(&joined.bundle), 2);
    assert_eq!(due_at(at, &joined), Due::Nothing { until: at + 3600 });

    let signed = settled(at + 3600, joined.clone());
    assert_ne!(signed.leaf, joined.leaf);
    assert_eq!(signed.bundle, joined.bundle);
    assert!(!trusts(at + 3600, &with_fresh_leaf.bundle, &signed.leaf));

    // The old one goes when it has ended.
    let end = NOW + 730 * DAY + 1;
    let last = settled(end, settled(end - 50 * DAY, signed));
    assert_eq!(count(&last.bundle), 1);
}

#[test]
fn a_clock_that_is_set_back_or_forward_is_healed() {
    let kept = made(NOW);
    for step in [-20 * 365 * DAY, -2 * DAY, 70 * DAY, 800 * DAY, 20 * 365 * DAY] {
        let there = settled(NOW + step, kept.clone());
        assert!(trusts(NOW + step, &there.bundle, &there.leaf), "after a step of {step} s");

        let back = settled(NOW, there);
        assert!(trusts(NOW, &back.bundle, &back.leaf), "back from a step of {step} s");
    }
    // A clock that goes slow by less than a day finds everything valid.
    assert!(matches!(due_at(NOW - DAY + 1, &kept), Due::Nothing { .. }));
}

#[test]
fn whatever_is_broken_in_the_secret_is_made_anew_and_nothing_more() {
    let kept = made(NOW);
    let other = made(NOW);
    let broken = |change: &dyn Fn(&mut Kept)| {
        let mut broken = kept.clone();
        change(&mut broken);
        due_at(NOW, &broken)
    };

    assert_eq!(broken(&|kept| kept.leaf.clear()), Due::Leaf);
    assert_eq!(broken(&|kept| kept.leaf_key = "nonsense".to_owned()), Due::Leaf);
    assert_eq!(broken(&|kept| kept.leaf_key.clone_from(&other.leaf_key)), Due::Leaf);
    assert_eq!(broken(&|kept| kept.leaf.clone_from(&other.leaf)), Due::Leaf);
    assert_eq!(broken(&|kept| kept.bundle.clear()), Due::Everything);
    assert_eq!(broken(&|kept| kept.bundle.clone_from(&kept.leaf)), Due::Everything);
    assert_eq!(broken(&|kept| kept.bundle.truncate(100)), Due::Everything);
    assert_eq!(broken(&|kept| kept.authority_key.clear()), Due::Everything);
    assert_eq!(broken(&|kept| *kept = Kept::default()), Due::Everything);
    assert_eq!(broken(&|kept| kept.bundle = kept.bundle.repeat(5)), Due::Pruning);

    let mut data = kept.data();
    data.insert("tls.crt".to_owned(), vec![0xff, 0xfe]);
    assert_eq!(due_at(NOW, &Kept::of(&data)), Due::Leaf);
    for _ in 0..20 {
        let mut piece = kept.clone();
        let end = piece.bundle.len() / 2;
        piece.bundle.replace_range(end..end + 4, "AAAA");
        let healed = settled(NOW, piece);
        assert!(trusts(NOW, &healed.bundle, &healed.leaf));
    }
}

#[test]
fn another_namespace_needs_another_leaf() {
    let kept = made(NOW);

    let due = due(NOW, &kept, &super::names("elsewhere"), &Lifetimes::default());

    assert_eq!(due, Due::Leaf);
}

#[test]
fn keys_do_not_show_in_logs() {
    let kept = made(NOW);

    let shown = format!("{kept:?}");

    assert!(!shown.contains("PRIVATE KEY"), "{shown}");
}
