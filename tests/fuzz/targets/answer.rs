// SPDX-License-Identifier: GPL-2.0

//! An answer to a greeting is judged as `conn/hello.rs` says, and what was accepted is what was said.

use super::hello::{
    any_node,
    any_standing,
    spoil,
    Fields, //
};
use crate::config::NodeId;
use crate::conn::hello::{
    check_answer,
    refuse,
    welcome,
    Answer,
    Identity,
    Refusal, //
};
use crate::script::Script;

/// What an answer is to be taken for: a welcome (`None`), a refusal, or somebody else's.
fn judgement(fields: &Fields, me: &Identity, expected: NodeId) -> Result<Option<Refusal>, Refusal> {
    if fields.magic == *b"KCCM" && fields.kind == 3 {
        // From whatever version.
        let place = usize::from(fields.reason).checked_sub(1);
        return place
            .and_then(|place| REFUSALS.get(place))
            .map(|reason| Some(*reason))
            .ok_or(Refusal::Malformed);
    }
    let sane = fields.sane() && fields.kind == 2 && fields.reason == 0;
    let right =
        fields.from == expected && fields.to == me.id && fields.standing.with == me.incarnation;
    let reasons = [
        (fields.magic != *b"KCCM", Refusal::Malformed),
        (fields.version != 2, Refusal::Version),
        (!sane, Refusal::Malformed),
        (fields.cluster != *me.cluster.wire(), Refusal::Cluster),
        (!right, Refusal::UnknownId),
    ];
    match reasons.into_iter().find(|reason| reason.0) {
        None => Ok(None),
        Some((_, reason)) => Err(reason),
    }
}

/// By their numbers, from 1.
const REFUSALS: [Refusal; 11] = [
    Refusal::Version,
    Refusal::Cluster,
    Refusal::UnknownId,
    Refusal::Direction,
    Refusal::Duplicate,
    Refusal::Address,
    Refusal::AdminDown,
    Refusal::Stopping,
    Refusal::Malformed,
    Refusal::Stale,
    Refusal::Early,
];

pub(crate) fn run(input: &[u8]) {
    let mut script = Script::new(input);
    let (me, other) = (any_node(&mut script), any_node(&mut script));
    let expected = match script.bit() {
        true => other.id,
        false => script.u8().into(),
    };
    // One that is as it should be, or nearly so.
    let mut bytes = match script.u8() % 16 {
        0 => welcome(&other, &me, any_standing(&mut script)),
        reason => refuse(&other, REFUSALS[usize::from(reason) % REFUSALS.len()]),
    };
    spoil(&mut bytes, &mut script);
    let fields = Fields::of(&bytes);

    let right = judgement(&fields, &me, expected);
    match check_answer(&bytes, &me, expected) {
        Ok(Answer::Welcome(greeting)) => {
            assert_eq!(right, Ok(None));
            assert!(fields.says(&greeting));
            let again = welcome(&greeting.peer, &me, greeting.standing);
            assert_eq!(again, bytes);
        }
        Ok(Answer::Refused(reason)) => {
            assert_eq!(right, Ok(Some(reason)));
            // For the log and `last_error`.
            assert!(reason.errno().to_errno() < 0 && !reason.to_string().is_empty());
        }
        Err(why) => assert_eq!(right, Err(why)),
    }
}
