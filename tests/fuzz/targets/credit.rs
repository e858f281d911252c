// SPDX-License-Identifier: GPL-2.0

//! Credit keeps what a receiver holds within its window whatever the sender does, an honest sender
//! breaks no rule, and when nothing is held any more, every frame that a window is made for gets its
//! turn.

use crate::conn::credit::{
    call_cost,
    least_window,
    message_cost,
    Receiver,
    Sender, //
};
use crate::script::Script;
use std::collections::VecDeque;

/// Windows are no larger, see `config.rs`.
const WIDEST: u64 = 1 << 40;

fn any_window(script: &mut Script<'_>) -> u64 {
    script.number().clamp(least_window(message_cost(0)), WIDEST)
}

fn any_cost(script: &mut Script<'_>) -> u64 {
    match script.bit() {
        true => message_cost(script.number() as u32),
        false => call_cost(script.number() as u32, script.number() as u32),
    }
}

/// Something that the receiver keeps.
struct Kept {
    cost: u64,
    /// In which session it came.
    session: usize,
}

/// Both ends of a lane, and what is on its way between them: in order, but as late as it likes.
struct Lane {
    window: u64,
    sender: Sender,
    receiver: Receiver,
    /// What was granted and has not come in.
    left: u64,
    session: usize,
    kept: Vec<Kept>,
    frames: VecDeque<u64>,
    grants: VecDeque<u64>,
    told: Vec<u64>,
}

impl Lane {
    fn new(window: u64) -> Self {
        let mut receiver = Receiver::new(window);
        let granted = receiver.restart();
        assert_eq!(granted, window);
        Self {
            window,
            sender: Sender::new(window, granted),
            receiver,
            left: granted,
            session: 0,
            kept: Vec::new(),
            frames: VecDeque::new(),
            grants: VecDeque::new(),
            told: Vec::new(),
        }
    }

    fn send(&mut self, cost: u64) -> bool {
        let enough = self.sender.is_enough_for(cost);
        let sent = self.sender.take(cost);
        assert_eq!(sent, enough);
        if sent {
            self.frames.push_back(cost);
        }
        sent
    }

    fn receive(&mut self) {
        let Some(cost) = self.frames.pop_front() else {
            return;
        };
        assert_eq!(self.receiver.receive(cost), Ok(()), "of an honest sender");
        self.left -= cost;
        self.kept.push(Kept {
            cost,
            session: self.session,
        });
        self.grant();
    }

    fn release(&mut self, which: usize) {
        if self.kept.is_empty() {
            return;
        }
        let Kept { cost, session } = self.kept.swap_remove(which % self.kept.len());
        self.receiver.release(cost, session != self.session);
        self.grant();
    }

    /// Grants what is worth it: little is never kept from a sender that has little.
    fn grant(&mut self) {
        let limit = self.receiver.worth_granting();
        self.granted(limit);
        let (quarter, more) = (self.window.div_ceil(4), self.free() - self.left);
        assert!(more == 0 || (more < quarter && self.left >= quarter));
    }

    fn granted(&mut self, limit: Option<u64>) {
        if limit.is_some() {
            self.left = self.free();
        }
        self.grants.extend(limit);
    }

    fn hear(&mut self) {
        if let Some(limit) = self.grants.pop_front() {
            assert!(self.sender.grant(limit).is_ok(), "of an honest receiver");
            self.told.push(limit);
        }
    }

    /// An old grant comes once more.
    fn hear_again(&mut self, which: usize) {
        if !self.told.is_empty() {
            let limit = self.told[which % self.told.len()];
            assert_eq!(self.sender.grant(limit), Ok(false));
        }
    }

    /// A frame comes in and cannot be delivered: it will come again.
    fn cancel(&mut self) {
        let Some(&cost) = self.frames.front() else {
            return;
        };
        self.receive();
        self.kept.pop();
        self.frames.push_front(cost);
        self.receiver.cancel(cost);
        self.left += cost;
        self.grant();
    }

    /// The connection breaks. Over another one, frames are sent again and are not paid for again;
    /// what has been granted is told again.
    fn resume(&mut self, all: bool) {
        self.grants.clear();
        let limit = if all {
            let limit = self.receiver.total();
            self.left = self.free();
            limit
        } else {
            self.receiver.granted()
        };
        assert!(self.sender.grant(limit).is_ok(), "of an honest receiver");
        self.told.push(limit);
    }

    /// The session ends, with all that is on its way, and another begins. If `promised`, what it
    /// grants was told before it began, and something was released in between.
    fn begin_anew(&mut self, promised: bool, released_between: usize) {
        self.frames.clear();
        self.grants.clear();
        self.told.clear();
        self.receiver.carry();
        self.session += 1;
        assert!(self.receiver.receive(1).is_err(), "without a session");
        let promise = promised.then(|| self.receiver.prospect());
        assert!(promise.is_none_or(|granted| granted == self.free()));
        for _ in 0..released_between.min(self.kept.len()) {
            if let Some(kept) = self.kept.pop() {
                self.receiver.release(kept.cost, true);
            }
        }
        let granted = self.receiver.restart();
        assert_eq!(granted, self.free());
        self.left = granted;
        if let Some(granted) = promise {
            self.receiver.promise(granted);
        }
        self.sender = Sender::new(self.window, promise.unwrap_or(granted));
        if promised {
            // What has been released since is told by itself.
            self.grants.push_back(self.receiver.total());
        }
    }

    fn held(&self) -> u64 {
        self.kept.iter().map(|kept| kept.cost).sum()
    }

    /// The part of the window in which nothing is kept.
    fn free(&self) -> u64 {
        self.window - self.held()
    }

    fn check(&self) {
        assert_eq!(self.receiver.queued(), self.held());
        assert!(
            self.held() + self.left <= self.window,
            "more is kept than may be"
        );
        assert!(self.receiver.prospect() == self.free() && self.receiver.granted() >= self.left);
    }

    /// Everything arrives and nothing is kept: then the costliest frame can be sent.
    fn settle(&mut self) {
        while !self.frames.is_empty() {
            self.receive();
        }
        while !self.kept.is_empty() {
            self.release(0);
        }
        while !self.grants.is_empty() {
            self.hear();
        }
        self.check();
        let costliest = (3 * self.window) / 4;
        assert!(least_window(costliest) <= self.window);
        assert!(self.send(costliest), "the sender waits for ever");
    }
}

/// Two that play by the rules.
fn honest(script: &mut Script<'_>) {
    let mut lane = Lane::new(any_window(script));
    while script.more() {
        match script.u8() % 10 {
            0 => {
                let cost = any_cost(script);
                lane.send(cost);
            }
            // One that may just fit.
            1 => {
                let cost = lane.window.saturating_sub(script.number());
                lane.send(cost);
            }
            2 => lane.receive(),
            3 => lane.release(script.u8().into()),
            4 => lane.hear(),
            5 => lane.hear_again(script.u8().into()),
            6 => {
                let limit = lane.receiver.regrant();
                lane.granted(limit);
            }
            7 => lane.cancel(),
            8 => lane.resume(script.bit()),
            _ => lane.begin_anew(script.bit(), script.u8().into()),
        }
        lane.check();
    }
    lane.settle();
}

/// A sender that is granted anything.
fn hostile_receiver(script: &mut Script<'_>) {
    let (window, granted) = (script.number(), script.number());
    let mut sender = Sender::new(window, granted);
    let (mut sent, mut limit) = (0_u64, granted.min(window));
    while script.more() {
        let number = script.number();
        if script.bit() {
            let fits = number <= limit - sent;
            assert_eq!(sender.take(number), fits);
            sent += if fits { number } else { 0 };
        } else {
            let most = u128::from(sent) + u128::from(window);
            let right = u128::from(number) <= most.min(u64::MAX.into());
            assert_eq!(sender.grant(number).ok(), right.then_some(number > limit));
            limit = if right { limit.max(number) } else { limit };
        }
        assert!(sent <= limit);
    }
}

/// A receiver that is sent anything.
fn hostile_sender(script: &mut Script<'_>) {
    let mut lane = Lane::new(any_window(script));
    while script.more() {
        match script.u8() % 4 {
            0 => {
                let cost = script.number();
                let fits = cost <= lane.left;
                assert_eq!(lane.receiver.receive(cost).is_ok(), fits);
                if fits {
                    lane.left -= cost;
                    let session = lane.session;
                    lane.kept.push(Kept { cost, session });
                }
            }
            1 => lane.release(script.u8().into()),
            2 => lane.grant(),
            _ => lane.begin_anew(script.bit(), script.u8().into()),
        }
        lane.check();
    }
}

pub(crate) fn run(input: &[u8]) {
    let mut script = Script::new(input);
    match script.u8() % 4 {
        0 | 1 => honest(&mut script),
        2 => hostile_sender(&mut script),
        _ => hostile_receiver(&mut script),
    }
}
