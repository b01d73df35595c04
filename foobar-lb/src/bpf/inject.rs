//! Frames that are given to the program as if they had come in from outside.

use aya::programs::{TestRun, TestRunAttrs, TestRunOptions};
use zerocopy::IntoBytes;

use super::{Bpf, Error};

impl Bpf {
    /// Has the program treat a frame as if it had come in by the interface with this index, and do with it what it
    /// decides: it is sent, or handed to the kernel (Linux 5.18).
    pub fn inject(&mut self, frame: &[u8], ingress: u32) -> Result<(), Error> {
        // A `struct xdp_md`: where data begins and ends, and where it arrived.
        let context: [u32; 6] = [0, frame.len() as u32, 0, ingress, 0, 0];
        let options = TestRunOptions {
            data_in: Some(frame),
            ctx_in: Some(context.as_bytes()),
            attrs: TestRunAttrs::new().xdp_live_frames(1),
            ..TestRunOptions::default()
        };
        self.program().test_run(options).map(drop).map_err(|source| Error::Inject(Box::new(source)))
    }
}
