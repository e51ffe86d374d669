//! Keys, TTLs and source addresses.

use std::{
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, TcpListener, TcpStream},
    num::{NonZeroU8, NonZeroU16},
    thread,
};

use ferrogate_core::{
    model::peer::{AoAlgorithm, Key, PeerAsn, Signature, TcpAo},
    speaker::bgp::{Closing, Loss, Neighbor, Remote, SessionStatus, State, Transport, Trouble, Ttl},
};
use ferrogate_integration::router::{self, Router, Vendor};
use ferrogate_wire::bgp::{Asn, BgpIdentifier};

use crate::stand::{NODE, NODE6, OURS, ROUTER, ROUTER6, Speaker, Stand, THEIRS, config, neighbor, prefix, speaker_in};

const IPV4: &str = "198.51.100.7/32";

const SECRET: &str = "correct-horse-battery";

/// The router at an address, with what its connections are made of as `adapt` has it.
fn over(address: impl Into<IpAddr>, adapt: impl FnOnce(&mut Transport)) -> Neighbor {
    let mut neighbor = neighbor(address, THEIRS);
    adapt(&mut neighbor.transport);
    neighbor
}

fn keyed(address: impl Into<IpAddr>, key: &str) -> Neighbor {
    over(address, |transport| transport.signature = Key::new(key).map(Signature::Md5))
}

fn never_up(status: &SessionStatus) -> bool {
    status.state != State::Established && status.flaps == 0
}

#[test]
fn n_060_a_session_is_up_with_the_right_key_and_with_no_other_and_the_status_tells_that_keys_differ() {
    let cases = [
        // The router's, ours, and what the status says of it.
        (Some(SECRET), Some(SECRET), None),
        (Some(SECRET), Some("wrong"), Some(Trouble::Md5Mismatch)),
        (Some(SECRET), None, Some(Trouble::TimedOut)),
        (None, Some(SECRET), Some(Trouble::Md5Mismatch)),
    ];
    // Most of the time of each is spent waiting for an answer that does not come.
    thread::scope(|scope| {
        for vendor in Vendor::STRICT {
            for (theirs, ours, trouble) in cases.clone() {
                scope.spawn(move || {
                    let stand = Stand::new();
                    let _router =
                        stand.router(vendor, THEIRS, |neighbor| neighbor.password = theirs.map(str::to_owned));
                    let mut speaker = stand.speaker();
                    for (name, address) in [("four", IpAddr::from(ROUTER)), ("six", ROUTER6.into())] {
                        speaker.peer(
                            name,
                            over(address, |transport| {
                                transport.signature = ours.and_then(Key::new).map(Signature::Md5)
                            }),
                        );
                    }
                    for name in ["four", "six"] {
                        let context = format!("{vendor:?}: {theirs:?}, {ours:?}, {name}");
                        match &trouble {
                            None => drop(speaker.wait_until_established(name)),
                            Some(trouble) => {
                                let status = speaker.wait_for(name, |status| status.trouble.is_some());
                                assert_eq!(status.trouble.as_ref(), Some(trouble), "{context}");
                                assert!(never_up(&status), "{context}: {status:?}");
                            }
                        }
                    }
                });
            }
        }
    });
    assert!(Trouble::Md5Mismatch.to_string().starts_with("MD5 mismatch suspected"));
}

#[test]
fn n_061_each_peer_that_is_waited_for_has_a_key_of_its_own_and_changing_one_restarts_only_that() {
    for vendor in Vendor::STRICT {
        let stand = Stand::new();
        let with = |key: &'static str| {
            config(THEIRS, move |neighbor: &mut router::Neighbor| {
                neighbor.passive = false;
                let key = if neighbor.address.is_ipv4() { key } else { "of-six" };
                neighbor.password = Some(key.to_owned());
            })
        };
        let mut router = Router::start(vendor, &stand.router, &with("of-four")).unwrap();
        let mut speaker = stand.speaker();
        let passive = |neighbor: Neighbor| Neighbor { passive: true, ..neighbor };
        speaker.peer("four", passive(keyed(ROUTER, "of-four")));
        speaker.peer("six", passive(keyed(ROUTER6, "of-six")));
        speaker.wait_until_established("four");
        speaker.wait_until_established("six");

        speaker.peer("four", passive(keyed(ROUTER, "another")));
        speaker.wait_for("four", |status| status.state != State::Established && status.flaps == 1);
        router.reconfigure(&with("another")).unwrap();

        let status = speaker.wait_until_established("four");
        assert_eq!(status.flaps, 1, "{vendor:?}");
        let status = speaker.wait_until_established("six");
        assert_eq!((status.flaps, status.last_close), (0, None), "{vendor:?}");
    }
}

#[test]
fn n_061_whoever_connects_with_the_key_of_another_peer_or_none_is_not_heard() {
    for vendor in Vendor::STRICT {
        for key in [Some("of-six"), None] {
            let stand = Stand::new();
            let adapt = |neighbor: &mut router::Neighbor| {
                neighbor.passive = false;
                let is_ipv4 = neighbor.address.is_ipv4();
                neighbor.password = if is_ipv4 { key } else { Some("of-six") }.map(str::to_owned);
            };
            let router = stand.router(vendor, THEIRS, adapt);
            let mut speaker = stand.speaker();
            let passive = |neighbor: Neighbor| Neighbor { passive: true, ..neighbor };
            speaker.peer("four", passive(keyed(ROUTER, "of-four")));
            speaker.peer("six", passive(keyed(ROUTER6, "of-six")));

            speaker.wait_until_established("six");
            // The kernel counts what it drops, and the status tells.
            let status = speaker.wait_for("four", |status| status.trouble.is_some());

            assert_eq!(status.trouble, Some(Trouble::Md5Mismatch), "{vendor:?} {key:?}");
            assert!(never_up(&status), "{vendor:?} {key:?}: {status:?}");
            assert!(!router.is_established(NODE.into()).unwrap());
        }
    }
}

#[test]
fn n_062_a_peer_that_is_to_be_near_is_heard_only_if_its_packets_prove_it() {
    let one = Ttl::Security { hops: NonZeroU8::MIN };
    thread::scope(|scope| {
        for vendor in Vendor::STRICT {
            for is_secure in [true, false] {
                scope.spawn(move || {
                    let stand = Stand::new();
                    let router = stand.router(vendor, THEIRS, |neighbor| neighbor.ttl_security = is_secure);
                    let mut speaker = stand.speaker();

                    speaker.peer("four", over(ROUTER, |transport| transport.ttl = one));
                    speaker.peer("six", over(ROUTER6, |transport| transport.ttl = one));

                    for (name, address) in [("four", IpAddr::from(NODE)), ("six", NODE6.into())] {
                        if is_secure {
                            speaker.wait_until_established(name);
                            router.wait_until_established(address).unwrap();
                        } else {
                            // Its packets come with the TTL of every other program, or with 1. Those of its kernel
                            // that take the connection may come with 255.
                            let is_tried =
                                |status: &SessionStatus| status.trouble.is_some() || status.last_close.is_some();
                            let status = speaker.wait_for(name, is_tried);
                            assert!(status.trouble.is_none_or(|trouble| trouble == Trouble::TimedOut), "{vendor:?}");
                            let is_silent =
                                status.last_close.is_none_or(|closing| closing == Closing::Lost(Loss::Silent));
                            assert!(is_silent && status.flaps == 0, "{vendor:?} {name}");
                            assert!(!router.is_established(address).unwrap(), "{vendor:?} {name}");
                        }
                    }
                });
            }
        }
    });
}

#[test]
fn n_062_a_router_that_wants_proof_that_we_are_near_does_not_hear_us_without() {
    for vendor in Vendor::STRICT {
        let stand = Stand::new();
        let router = stand.router(vendor, THEIRS, |neighbor| neighbor.ttl_security = true);
        let mut speaker = stand.speaker();

        speaker.peer("router", neighbor(ROUTER, THEIRS));

        let status = speaker.wait_for("router", |status| status.trouble.is_some() || status.last_close.is_some());
        // Routers ask for proof when they have taken the connection. What they have read by then they believe, and hear
        // nothing more, until either side's hold time is over.
        let fell_silent =
            matches!(&status.last_close, Some(Closing::Received(said) | Closing::Sent(said)) if said.code == 4);
        assert!(fell_silent || never_up(&status), "{vendor:?}: {status:?}");
        assert!(fell_silent || !router.is_established(NODE.into()).unwrap(), "{vendor:?}");
    }
}

fn by_tcp_ao(address: impl Into<IpAddr>, algorithm: AoAlgorithm, send_id: u8, receive_id: u8) -> Neighbor {
    let key = Key::new(SECRET).unwrap();
    let terms = TcpAo { send_id, receive_id, algorithm };
    over(address, |transport| transport.signature = Some(Signature::Ao { key, terms }))
}

#[test]
fn n_063_tcp_ao_signs_a_session_where_the_kernel_has_it_and_elsewhere_nothing_leaves_unsigned_and_the_status_says_why()
{
    for algorithm in AoAlgorithm::ALL {
        let stand = Stand::new();
        let mut speaker = stand.speaker();
        speaker.peer("four", by_tcp_ao(ROUTER, algorithm, 1, 2));
        speaker.peer("six", by_tcp_ao(ROUTER6, algorithm, 1, 2));
        let first = speaker.wait_for("four", |status| status.trouble.is_some());
        if first.trouble != Some(Trouble::NoTcpAo(algorithm)) {
            signs_by_tcp_ao(&stand, &speaker, algorithm);
            continue;
        }
        println!(
            "this kernel has no TCP-AO with {algorithm} (CONFIG_TCP_AO): a session that it signs is not tried here"
        );

        // Whatever is tried at a port that somebody listens at is seen there.
        let listen = |address: IpAddr, port: u16| stand.router.run(|| TcpListener::bind((address, port)).unwrap());
        let signed = [ROUTER.into(), ROUTER6.into()].map(|address| listen(address, 179));
        let open = listen(ROUTER.into(), 1179);
        let passive = Neighbor { passive: true, ..by_tcp_ao(Ipv4Addr::new(192, 0, 2, 77), algorithm, 1, 2) };
        speaker.peer("waited-for", passive);
        let port = NonZeroU16::new(1179).unwrap();
        let unsigned =
            Neighbor { remote: Remote::Address { address: ROUTER.into(), port }, ..neighbor(ROUTER, THEIRS) };
        speaker.peer("unsigned", unsigned);
        // The other is tried again and again meanwhile.
        for _ in 0..3 {
            drop(open.accept().unwrap());
        }

        for listener in signed {
            listener.set_nonblocking(true).unwrap();
            assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock, "nobody connects");
        }
        let connected = stand.router.run(|| TcpStream::connect((NODE, 179)));
        assert_eq!(connected.unwrap_err().kind(), ErrorKind::ConnectionRefused, "nobody listens");
        for name in ["four", "six", "waited-for"] {
            let status = speaker.wait_for(name, |status| status.trouble.is_some());
            assert_eq!((status.state, status.flaps, &status.last_close), (State::Idle, 0, &None), "{name}");
            let trouble = status.trouble.unwrap();
            assert_eq!((&trouble, trouble.reason()), (&Trouble::NoTcpAo(algorithm), "Unsupported"), "{name}");
            let said = trouble.to_string();
            let parts = ["spec.tcpAO", algorithm.name(), "CONFIG_TCP_AO"];
            assert!(parts.iter().all(|part| said.contains(part)), "{said}");
        }
    }
}

/// The node connects to a speaker in the router's place that waits for it, with the same key and each other's KeyIDs.
fn signs_by_tcp_ao(stand: &Stand, speaker: &Speaker, algorithm: AoAlgorithm) {
    let mut other = speaker_in(&stand.router, || {});
    for (name, address, send_id) in [("four", IpAddr::from(NODE), 2), ("six", NODE6.into(), 2)] {
        let node = Neighbor {
            passive: true,
            local_asn: Asn::new(THEIRS).unwrap(),
            peer_asn: PeerAsn::Fixed(Asn::new(OURS).unwrap()),
            identifier: BgpIdentifier::new(ROUTER.to_bits()).unwrap(),
            ..by_tcp_ao(address, algorithm, send_id, 1)
        };
        other.peer(name, node);
    }
    for name in ["four", "six"] {
        speaker.wait_until_established(name);
        other.wait_until_established(name);
    }
    // With another key it does not come up, and says so.
    let wrong = Neighbor {
        passive: true,
        ..over(NODE, |transport| {
            let terms = TcpAo { send_id: 2, receive_id: 1, algorithm };
            transport.signature = Key::new("wrong").map(|key| Signature::Ao { key, terms });
        })
    };
    other.peer("four", wrong);
    let status = speaker.wait_for("four", |status| status.trouble == Some(Trouble::AoMismatch));
    assert_ne!(status.state, State::Established);
}

#[test]
fn n_064_the_source_address_is_used_and_one_that_is_not_there_is_told() {
    let source = Ipv4Addr::new(192, 0, 2, 33);
    for vendor in Vendor::STRICT {
        let stand = Stand::with(&[NODE.into(), NODE6.into(), source.into()], &[ROUTER.into(), ROUTER6.into()]);
        let mut config = config(THEIRS, |_| {});
        config.neighbors = vec![router::Neighbor::new(source, ROUTER, OURS)];
        let router = Router::start(vendor, &stand.router, &config).unwrap();
        let mut speaker = stand.speaker();
        let from = |source: Ipv4Addr| over(ROUTER, |transport| transport.source = Some(source.into()));

        let absent = Ipv4Addr::new(203, 0, 113, 9);
        speaker.peer("router", from(absent));

        let status = speaker.wait_for("router", |status| status.trouble.is_some());
        assert_eq!(status.trouble, Some(Trouble::NoSourceAddress(absent.into())), "{vendor:?}");
        assert!(never_up(&status), "{vendor:?}: {status:?}");

        speaker.peer("router", from(source));
        speaker.advertise(&[IPV4]);

        let status = speaker.wait_until_established("router");
        assert_eq!(status.local_address, Some(source.into()), "{vendor:?}");
        let route = router.wait_for_route(prefix(IPV4), |_| true).unwrap();
        assert!(route.next_hops.contains(&source.into()), "{vendor:?}: {route:?}");
    }
}

#[test]
fn n_065_a_key_is_shown_by_nothing() {
    for vendor in Vendor::STRICT {
        let stand = Stand::new();
        let _router = stand.router(vendor, THEIRS, |neighbor| neighbor.password = Some(SECRET.to_owned()));
        let mut speaker = stand.speaker();
        speaker.peer("right", keyed(ROUTER, SECRET));
        speaker.peer("absent", keyed(Ipv4Addr::new(192, 0, 2, 77), SECRET));
        speaker.wait_until_established("right");
        speaker.wait_for("absent", |status| status.trouble.is_some());

        let sessions = speaker.bgp.sessions();
        let shown = format!("{:?} {:?} {:#?}", speaker.bgp, *sessions.borrow(), speaker.wanted);

        assert!(shown.contains("Key(…)"), "{vendor:?}: {shown}");
        assert!(!shown.contains(SECRET), "{vendor:?}");
    }
}
