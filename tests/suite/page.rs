//! The page at `/` in a real browser, behind a proxy that serves the gateway under a path.

use std::{
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    thread::JoinHandle,
    time::Duration,
};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::{
    Rig, SOON, START,
    browser::{Browser, has_chromium},
    eventually, eventually_some,
    http::Http,
};

const PREFIX: &str = "/lastcall/";

/// A reverse proxy that strips [`PREFIX`] and counts the requests for `overview`.
struct Proxy {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    fn start(gateway: &str) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let (asked, stop) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let (count, ended, gateway) = (Arc::clone(&asked), Arc::clone(&stop), gateway.to_owned());
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if ended.load(SeqCst) {
                    return;
                }
                let (count, gateway) = (Arc::clone(&count), gateway.clone());
                // A browser opens connections ahead. Their threads end with the browser.
                std::thread::spawn(move || pass(stream, &gateway, &count));
            }
        });
        Proxy { address, asked, stop, thread: Some(thread) }
    }

    fn url(&self) -> String {
        format!("http://{}{PREFIX}", self.address)
    }

    /// How often the page has asked for its data.
    fn asked(&self) -> usize {
        self.asked.load(SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
        if TcpStream::connect(self.address).is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

/// Passes one request on, and its response back: 404 outside the prefix, 502 without a response.
fn pass(mut stream: TcpStream, gateway: &str, asked: &AtomicUsize) {
    let head = BufReader::new(&stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty());
    let head: Vec<String> = head.collect();
    let Some(target) = head.first().and_then(|line| line.split(' ').nth(1)) else { return };
    let Some(path) = target.strip_prefix(PREFIX) else {
        let _ = stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        return;
    };
    asked.fetch_add(usize::from(path == "overview"), SeqCst);
    let answer = Http::connect(gateway).and_then(|mut http| http.get(&format!("/{path}")));
    let bytes = answer.map_or_else(
        |_| b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_vec(),
        |answer| {
            let header = |name| format!("{name}: {}\r\n", answer.header(name).unwrap_or_default());
            let headers: String = ["Content-Type", "Content-Security-Policy"].map(header).concat();
            let (status, length) = (answer.status, answer.body.len());
            let head = format!("HTTP/1.1 {status} \r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n");
            [head.as_bytes(), &answer.body].concat()
        },
    );
    let _ = stream.write_all(&bytes);
}

/// The text of the first element that this selector finds.
fn text(browser: &mut Browser, selector: &str) -> String {
    let text = browser.evaluate(&format!("document.querySelector({})?.innerText", json!(selector)));
    text.as_str().unwrap_or_default().to_owned()
}

fn wait_for_text(browser: &mut Browser, selector: &str, part: &str) {
    eventually(START, &format!("{selector} has {part:?}"), || text(browser, selector).contains(part));
}

#[test]
fn page_shows_a_drain_with_its_seconds_and_then_the_receipt() {
    if !has_chromium() {
        return;
    }
    let (_rig, gateway, mut worker) = Rig::shared("page").fleet("worker_2");
    let proxy = Proxy::start(&gateway.address);
    let mut browser = Browser::open(&proxy.url());
    wait_for_text(&mut browser, "#fleet tbody tr", "active");
    let task = gateway.submit("a long text", Duration::from_secs(6));
    wait_for_text(&mut browser, "#fleet tbody tr", &task);
    worker.signal(Signal::SIGTERM);
    let bar = "(() => { const bar = document.querySelector('#fleet [role=progressbar]'); \
               const left = bar.previousElementSibling.innerText, width = bar.firstElementChild.offsetWidth; \
               return { label: bar.ariaLabel, left, now: bar.ariaValueNow, full: bar.ariaValueMax, width }; })()";
    let bar = eventually_some(SOON, "the bar of the drain", || {
        Some(browser.evaluate(bar)).filter(|bar| bar["width"].as_f64().is_some_and(|width| width > 0.0))
    });
    let seconds: u64 = bar["now"].as_str().and_then(|text| text.parse().ok()).expect("a number");
    assert!((20..=30).contains(&seconds), "{bar}");
    let texts = [&bar["label"], &bar["left"], &bar["full"]].map(|text| text.as_str().unwrap_or_default());
    assert_eq!(texts, ["Drain of worker_2", &format!("{seconds} s left"), "30"]);
    wait_for_text(&mut browser, "#fleet tbody tr", "draining");
    wait_for_text(&mut browser, "[aria-live]", "Worker worker_2: draining");
    assert_eq!(worker.wait(SOON).code, Some(0));
    wait_for_text(&mut browser, "#stops tbody tr", "worker_2");
    let cells = "[...document.querySelectorAll('#stops tbody tr > *')].map((cell) => cell.innerText)";
    let cells = browser.evaluate(cells);
    let texts: Vec<&str> = cells.as_array().expect("a row").iter().filter_map(Value::as_str).collect();
    assert_eq!((&texts[1..4], &texts[5..]), (&["worker_2", "SIGTERM", "drained"][..], &["1", "0", "0", "0"][..]));
    browser.evaluate("document.querySelector('#stops summary').click()");
    let phases = text(&mut browser, "#stops details ul");
    let names: Vec<&str> = phases.lines().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(names, ["announce", "drain", "close", "total"], "{phases}");
    wait_for_text(&mut browser, "#fleet tbody tr", "stopped");
    assert_eq!(browser.errors(), Vec::<Value>::new());
}

#[test]
fn page_says_when_its_figures_are_old_and_asks_nothing_while_it_is_hidden() {
    if !has_chromium() {
        return;
    }
    let (_rig, mut gateway, _worker) = Rig::shared("page-old").fleet("w");
    let proxy = Proxy::start(&gateway.address);
    let mut browser = Browser::open(&proxy.url());
    eventually(START, "the page asks again and again", || proxy.asked() > 2);
    gateway.program.signal(Signal::SIGSTOP);
    let before = proxy.asked();
    wait_for_text(&mut browser, "#notice", "No answer from the gateway for");
    assert!(proxy.asked() <= before + 1, "it asks again only after its time-out");
    assert_eq!(browser.evaluate("document.getElementById('all').className"), "stale");
    gateway.program.signal(Signal::SIGCONT);
    eventually(SOON, "the figures are new", || browser.evaluate("document.getElementById('notice').hidden") == true);

    let visibility = |hidden: bool| {
        format!(
            "Object.defineProperty(document, 'hidden', {{ value: {hidden}, configurable: true }}); \
             document.dispatchEvent(new Event('visibilitychange'))"
        )
    };
    browser.evaluate(&visibility(true));
    let before = proxy.asked();
    // That nothing happens takes time to see: more than two intervals.
    browser.evaluate("new Promise((done) => setTimeout(done, 2500))");
    assert!(proxy.asked() <= before + 1, "only a request that was on its way");
    browser.evaluate(&visibility(false));
    eventually(Duration::from_millis(900), "the page asks at once", || proxy.asked() > before);
    gateway.program.kill();
    wait_for_text(&mut browser, "#notice", "(status 502). All figures are from");
}

/// Shows a fleet of 2,001 workers, and returns what the page shows of it.
const MANY_WORKERS: &str = r##"(() => {
  const worker = (status, more) =>
    ({ status, is_responsive: true, seconds_since_update: 0, current_tasks: [], ...more });
  const names = [...Array(2000).keys()].map((number) => `worker_${number}`);
  const workers = Object.fromEntries(names.map((name) => [name, worker("worker_started")]));
  workers.worker_1999 = worker("worker_started", { is_responsive: false, seconds_since_update: 17 });
  workers.worker_1998 = worker("shutdown_started", { drain_seconds_left: 4 });
  workers.worker_1997 = worker("worker_quiet");
  workers.worker_3 = worker("shutdown_completed", { is_responsive: false, exit_code: 0 });
  const tasks = { current_tasks: ["t-1", "t-2"], current_task_seconds: [61.5, 0.2], holding_back: true };
  workers["a-name-as-long-as-names-of-pods-are-in-kubernetes-7d9f8b6c5-x2x4z"] = worker("worker_started", tasks);
  fleet({ active_workers: 1996, shutting_down_workers: 1, quiet_workers: 1, workers });
  const text = (row) => row.innerText.split(/\s*[\n\t]+\s*/).join(" ");
  const rows = [...document.querySelectorAll("#fleet tbody tr")].map(text);
  const note = document.querySelector("#fleet caption").innerText;
  return { rows, note, width: document.documentElement.scrollWidth };
})()"##;

#[test]
fn page_lists_two_hundred_workers_in_natural_order_and_fits_a_phone() {
    if !has_chromium() {
        return;
    }
    let rig = Rig::shared("page-many");
    let gateway = rig.start_gateway();
    let mut browser = Browser::open(&format!("http://{}/", gateway.address));
    browser.call(
        "Emulation.setDeviceMetricsOverride",
        json!({ "width": 360, "height": 800, "deviceScaleFactor": 1, "mobile": true }),
    );
    wait_for_text(&mut browser, "#fleet caption", "No worker");
    let seen = browser.evaluate(MANY_WORKERS);
    let rows: Vec<&str> = seen["rows"].as_array().expect("rows").iter().filter_map(Value::as_str).collect();
    assert_eq!((rows.len(), &seen["width"]), (200, &json!(360)), "{seen}");
    assert!(rows[0].contains("limits the queue") && rows[0].contains("1 min 1 s t-1 1 more"), "{}", rows[0]);
    assert!(rows[3].contains("worker_2") && rows[4].contains("worker_4"), "a stopped worker comes last: {rows:?}");
    assert!(rows[10].contains("worker_10"), "{rows:?}");
    for (row, [worker, state]) in rows[197..].iter().zip([
        ["worker_1997", "quiet"],
        ["worker_1998", "draining 4 s left"],
        ["worker_1999", "silent for 17 s"],
    ]) {
        assert!(row.contains(worker) && row.contains(state), "{row}");
    }
    let note = seen["note"].as_str().unwrap_or_default();
    assert!(note.contains("1,996 active, 1 draining, 1 quiet, 1 silent") && note.contains("1,801 more"), "{note}");
    assert_eq!(browser.errors(), Vec::<Value>::new());
}
