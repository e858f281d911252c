// SPDX-License-Identifier: GPL-2.0

//! What is fuzzed, a file each. `main.rs` has the list.

pub(crate) mod answer;
pub(crate) mod config;
pub(crate) mod credit;
pub(crate) mod frame;
pub(crate) mod hello;
pub(crate) mod peers;
pub(crate) mod session;
pub(crate) mod state;
pub(crate) mod stream;
