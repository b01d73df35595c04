//! Fuzzes the data path on the host: what a scene is and what has to be true of it is shared with the test that
//! replays the corpus, `foobar-lb/tests/corpus.rs`.

#![no_main]

#[path = "../../foobar-lb/tests/fuzz/mod.rs"]
mod fuzz;
#[expect(dead_code, unused_imports, reason = "the table's rows are run by other tests")]
#[path = "../../foobar-lb/tests/packet/mod.rs"]
mod packet;

use fuzz::Scene;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|scene: Scene| fuzz::check(&scene));
