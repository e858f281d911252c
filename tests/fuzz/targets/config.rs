// SPDX-License-Identifier: GPL-2.0

//! The parameters besides the peers: accepted within the ranges of the README and nowhere else; the
//! wrong one is named; and what a node was configured with, its peers accept in its greeting.

use crate::config::{
    ClusterName,
    Config,
    Invalid,
    KeyName,
    Limits, //
};
use crate::conn::frame::Bounds;
use crate::conn::hello::{
    check_hello,
    hello,
    Channel,
    Claimed,
    Identity,
    Standing, //
};
use crate::script::Script;

/// The module's defaults.
pub(super) const LIMITS: Limits = Limits {
    max_message: 16 << 20,
    max_rcall: 1 << 20,
    queue_bytes: 32 << 20,
    rcall_bytes: 8 << 20,
    max_long_handlers: 32,
    listeners: 1,
    dead_ms: 3000,
    handshake_ms: 2000,
    backoff_min_ms: 100,
    backoff_max_ms: 2000,
    short_warn_us: 10_000,
    kept_bytes: 32 << 20,
    kept_frames: 16384,
    unsent_bytes: 1 << 20,
};

/// A parameter: how to get it, how to set it, and its range, if it has one.
type Parameter = (
    &'static str,
    fn(&Limits) -> u64,
    fn(&mut Limits, u64),
    Option<(u64, u64)>,
);

macro_rules! parameters {
    ($($name:ident: $range:expr,)*) => {
        [$((
            stringify!($name),
            |limits| limits.$name.into(),
            |limits, value| limits.$name = value as _,
            $range,
        ),)*]
    };
}

const PARAMETERS: [Parameter; 14] = parameters! {
    max_message: Some((1, 1 << 30)),
    max_rcall: Some((1, 16 << 20)),
    queue_bytes: Some((4096, 1 << 40)),
    rcall_bytes: Some((4096, 1 << 40)),
    max_long_handlers: Some((1, 1024)),
    listeners: Some((1, 64)),
    dead_ms: Some((100, 3_600_000)),
    handshake_ms: Some((100, 60_000)),
    backoff_min_ms: Some((10, 60_000)),
    backoff_max_ms: Some((10, 60_000)),
    short_warn_us: None,
    kept_bytes: Some((4096, 1 << 40)),
    kept_frames: Some((1, 1 << 20)),
    unsent_bytes: Some((4096, 1 << 40)),
};

/// Some of the parameters are given, any value that they have room for.
fn any_limits(script: &mut Script<'_>) -> Limits {
    let mut limits = LIMITS;
    for _ in 0..script.u8() % 16 {
        let (_, _, set, range) = script.pick(&PARAMETERS);
        let (min, max) = range.unwrap_or((0, u64::MAX));
        let value = match script.u8() % 8 {
            0 => min,
            1 => max,
            2 => min.wrapping_sub(1),
            3 => max.wrapping_add(1),
            _ => script.number(),
        };
        set(&mut limits, value);
    }
    limits
}

/// The least that three of them must be, for the sake of others.
fn least(limits: &Limits) -> [(&'static str, u64, u64); 3] {
    let third_more = |cost: u64| (4 * cost).div_ceil(3);
    [
        (
            "backoff_max_ms",
            limits.backoff_max_ms.into(),
            limits.backoff_min_ms.into(),
        ),
        (
            "queue_bytes",
            limits.queue_bytes,
            third_more(256 + u64::from(limits.max_message)),
        ),
        (
            "rcall_bytes",
            limits.rcall_bytes,
            third_more(256 + 2 * u64::from(limits.max_rcall)),
        ),
    ]
}

/// A node with these limits greets one with its own.
fn greet(config: &Config) {
    let identity = |id, limits: &Limits| Identity {
        id,
        cluster: config.cluster,
        incarnation: 1,
        dead_ms: limits.dead_ms,
        bounds: Bounds {
            message: limits.max_message,
            rcall: limits.max_rcall,
        },
        windows: [limits.queue_bytes, limits.rcall_bytes],
    };
    let (me, peer) = (identity(0, &config.limits), identity(1, &LIMITS));
    let ip = config.me.addr.ip();
    let standing = Standing {
        granted: me.windows,
        ..Standing::default()
    };
    let judged = check_hello(&hello(&me, 1, Channel::Main, standing), &peer, ip, |_| {
        Some(Claimed {
            ip,
            admin_down: false,
            alive: None,
            known: false,
            resumable: None,
        })
    });
    assert!(judged.is_ok(), "refused: {:?}", judged.err());
}

/// What is to be said of a name.
fn is_name(name: &[u8]) -> bool {
    (1..=64).contains(&name.len()) && name.iter().all(|b| (b'!'..=b'~').contains(b))
}

/// A name, by itself.
fn check_name(bytes: &[u8]) {
    let name = ClusterName::new(bytes);
    assert_eq!(name.is_some(), is_name(bytes));
    if let Some(name) = name {
        assert_eq!(name.to_string().as_bytes(), bytes);
        assert!(ClusterName::from_wire(*name.wire()) == Some(name));
    }
    if let Some(wire) = bytes.first_chunk() {
        if let Some(name) = ClusterName::from_wire(*wire) {
            assert_eq!(name.wire(), wire);
            assert!(ClusterName::new(name.to_string().as_bytes()) == Some(name));
        }
    }
}

/// A name for the cluster's keys; with none there are no keys.
fn check_key_name(name: &str) {
    let right = name.len() <= 128 && name.bytes().all(|b| (b'!'..=b'~').contains(&b));
    match KeyName::new(name) {
        Ok(None) => assert!(name.is_empty()),
        Ok(Some(key)) => assert!(right && !name.is_empty() && key.to_string() == name),
        Err(invalid) => {
            assert!(invalid == Invalid::Key(name) && !right);
            assert!(invalid.to_string().starts_with("key: "));
        }
    }
}

pub(crate) fn run(input: &[u8]) {
    let mut script = Script::new(input);
    let limits = any_limits(&mut script);
    let id = match script.bit() {
        true => 0,
        false => script.number() as i64,
    };
    let port = match script.bit() {
        true => 7700,
        false => script.number() as u32,
    };
    let name = script.rest();
    check_name(name);
    let name = core::str::from_utf8(name).unwrap_or_default();
    check_key_name(name);
    // About as long as one may be.
    let about = 127 + name.len() % 3;
    check_key_name(&name.chars().cycle().take(about).collect::<String>());
    let cluster = if name.is_empty() { "kccm" } else { name };

    let entries = ["0=10.1.0.1", "1=10.1.0.2:7700"];
    let config = Config::new(id, cluster, port, entries.into_iter(), limits);
    let line = config.as_ref().err().map(Invalid::to_string);
    let in_range = |value: u64, range: Option<(u64, u64)>| {
        range.is_none_or(|(min, max)| (min..=max).contains(&value))
    };
    let ranges_hold = PARAMETERS.iter().all(|p| in_range(p.1(&limits), p.3));
    let wholes_hold = least(&limits)
        .iter()
        .all(|(_, value, least)| value >= least);
    match config {
        Ok(config) => {
            assert!((0..256).contains(&id) && (1..=65535).contains(&port));
            assert!(is_name(cluster.as_bytes()) && ranges_hold && wholes_hold);
            assert!(PARAMETERS
                .iter()
                .all(|p| p.1(&config.limits) == p.1(&limits)));
            assert_eq!(config.cluster.to_string(), cluster);
            greet(&config);
        }
        Err(Invalid::Missing(param)) => assert!(param == "node_id" && id < 0),
        Err(Invalid::Cluster(name)) => assert!(name == cluster && !is_name(name.as_bytes())),
        Err(Invalid::Range {
            param,
            value,
            min,
            max,
        }) => {
            let given = match param {
                "node_id" => Some((id as u64, Some((0, 255)))),
                "port" => Some((port.into(), Some((1, 65535)))),
                param => PARAMETERS
                    .iter()
                    .find(|p| p.0 == param)
                    .map(|p| (p.1(&limits), p.3)),
            };
            assert_eq!(given, Some((value, Some((min, max)))));
            assert!(!in_range(value, Some((min, max))));
        }
        Err(Invalid::TooSmall {
            param, least: said, ..
        }) => {
            let wrong = least(&limits)
                .into_iter()
                .find(|(_, value, least)| value < least);
            assert!(ranges_hold && wrong.is_some_and(|w| (w.0, w.2) == (param, said)));
        }
        Err(Invalid::OwnIdMissing(missing)) => {
            assert_eq!(i64::from(missing), id);
            assert!((2..256).contains(&id));
        }
        Err(other) => panic!("{other}"),
    }
    assert!(line.is_none_or(|line| !line.contains('\n') || cluster.contains('\n')));
}
