//! Pings of a VIP.

use foobar_lb::image::Image;
use foobar_lb_ebpf::reason::Reason;

use crate::packet::{
    Row,
    frame::{ETHERNET, Fragment, Ping, arriving, as_part, ether_type, ethernet, ip_header, padded},
    world::{BACKEND_SIDE, CLIENT, CLIENT_SIDE, FAR, Family, ROUTER, Story, VIP},
};

/// Bytes of data, odd ones too; the last fills a jumbo frame.
const LENGTHS: [usize; 10] = [0, 1, 2, 3, 8, 55, 56, 1000, 1452, 8952];

pub fn rows() -> Vec<Row> {
    Family::BOTH.into_iter().flat_map(of_family).collect()
}

fn of_family(family: Family) -> Vec<Row> {
    let usual = || ping(family, 56);
    let name = |what: &str| format!("a ping {what} ({family:?})");
    let mut rows: Vec<Row> = LENGTHS
        .iter()
        .map(|length| answered(name(&format!("of {length} bytes")), &ping(family, *length)))
        .collect();
    rows.extend([
        answered(name("with one hop left"), &Ping { hops: 1, ..usual() }),
        answered(name("with all hops left"), &Ping { hops: 255, ..usual() }),
        one_arm(name("by a router"), family),
        with_padding(name("with padding"), &ping(family, 2)),
        dropped(name("of a VIP that does not answer"), Story::settled().image(), usual().frame()),
        dropped(name("that is an answer"), answering(), Ping { is_reply: true, ..usual() }.frame()),
        dropped(
            name("that is cut short"),
            answering(),
            usual().frame()[..ETHERNET + ip_header(family) + 7].to_vec(),
        ),
        passed(name("of a local VIP"), local(), &usual()),
        passed(name("of another address"), answering(), &Ping { to: FAR.ip(family), ..usual() }),
        passed(name("by broadcast"), answering(), &by_broadcast(usual())),
    ]);
    let part = |offset, more| in_parts(family, Fragment { offset, more, id: 1 });
    rows.extend([part(0, true), part(8, true), part(8, false)]);
    rows
}

fn ping(family: Family, length: usize) -> Ping {
    Ping {
        link: arriving(CLIENT, CLIENT_SIDE),
        from: CLIENT.ip(family),
        to: VIP.ip(family),
        hops: 64,
        is_reply: false,
        data: (0..length).map(|place| place as u8 ^ 0xa5).collect(),
    }
}

/// The VIP is pinged, and the balancer answers.
fn answering() -> Image {
    pinged(Story::settled())
}

/// The kernel answers for its own addresses.
fn local() -> Image {
    pinged(Story::settled().with_local_vip())
}

fn pinged(story: Story) -> Image {
    story.configured(|service| service.vip.ping = true).image()
}

fn answered(name: String, ping: &Ping) -> Row {
    let (frame, out) = (ping.frame(), ping.answer().frame());
    Row::answers(name, answering(), CLIENT_SIDE.index, frame, out, Reason::Echo)
}

fn one_arm(name: String, family: Family) -> Row {
    let ping = Ping { link: arriving(ROUTER, BACKEND_SIDE), from: FAR.ip(family), ..ping(family, 56) };
    let row = answered(name, &ping);
    Row { ingress: BACKEND_SIDE.index, ..row }
}

fn with_padding(name: String, ping: &Ping) -> Row {
    let longer = |frame| [padded(frame), vec![0; 4]].concat();
    let (frame, out) = (longer(ping.frame()), longer(ping.answer().frame()));
    Row::answers(name, answering(), CLIENT_SIDE.index, frame, out, Reason::Echo)
}

fn dropped(name: String, image: Image, frame: Vec<u8>) -> Row {
    Row::drops(name, image, CLIENT_SIDE.index, frame, Reason::NoService)
}

/// What has not arrived as a whole cannot be answered.
fn in_parts(family: Family, part: Fragment) -> Row {
    let ping = ping(family, 56);
    let packet = as_part(&ping.frame()[ETHERNET..], part);
    let frame = ethernet(ping.link, ether_type(family), &packet);
    let Fragment { offset, more, .. } = part;
    let name = format!("a part of a ping ({family:?}, offset {offset}, more {more})");
    Row::drops(name, answering(), CLIENT_SIDE.index, frame, Reason::Fragment)
}

/// All on the wire would answer it.
fn by_broadcast(mut ping: Ping) -> Ping {
    ping.link.to = [0xff; 6];
    ping
}

fn passed(name: String, image: Image, ping: &Ping) -> Row {
    Row::passes(name, image, CLIENT_SIDE.index, ping.frame(), Reason::NotForService)
}
