//! A small agent, written from docs/protocol.md and nothing else: no type of Lockstep is in it. Its members' software
//! does at once whatever is asked, and counts in the file `calls`. It can be made wrong in one way at a time.

use serde_json::{Map, Value, json};
use std::fs::{self, File};
use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant, SystemTime};
use tokio_tungstenite::tungstenite::{Error, Message, WebSocket, client};

/// Runs for ever.
pub(crate) fn run(url: &str, defect: &str) {
    let mut agent = Agent::start(defect);
    loop {
        agent.lapse();
        if let Ok(stream) = TcpStream::connect(url.trim_start_matches("http://")) {
            stream.set_nodelay(true).unwrap();
            let url = format!("{}/v1/agent", url.replacen("http", "ws", 1));
            if let Ok((socket, _)) = client(url, stream) {
                // Whatever ends a session, the next one begins.
                let _ = agent.session(socket);
            }
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The session is over.
struct Over;

type Socket = WebSocket<TcpStream>;

struct Agent {
    defect: String,
    /// What survives: who it is, `reign`, `tokens`, `noticed`, `open`, `closed`, `states`, `leased`.
    kept: Value,
    run: String,
    members: Vec<Value>,
    lease: Duration,
    /// When the lease ends, by the clock of `sent`; none: no member needs one, or all have been stopped.
    lease_until: Option<u64>,
    renew_at: Option<Instant>,
    heard_at: Instant,
}

fn random() -> String {
    fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap().trim().to_owned()
}

/// A clock that goes on while this program is dead.
fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    u64::try_from(now.as_millis()).unwrap()
}

fn group(member: &Value) -> String {
    member.as_str().unwrap().split('@').next().unwrap().to_owned()
}

fn id(order: &Value) -> String {
    order["transition"].to_string()
}

impl Agent {
    fn start(defect: &str) -> Self {
        let is = |name: &str| defect == name;
        let text = fs::read_to_string("kept.json").unwrap_or_default();
        let mut kept: Value = serde_json::from_str(&text).unwrap_or_else(|_| {
            json!({ "agent": random(), "run": random(), "reign": 0, "tokens": {}, "noticed": 0, "open": {}, "closed": {},
                "states": {}, "leased": {} })
        });
        if is("tokens-lost") {
            kept["tokens"] = json!({});
        }
        if is("nothing-kept") {
            kept["agent"] = json!(random());
        }
        for open in kept["open"].as_object_mut().unwrap().values_mut() {
            if is("answers-lost") {
                open["answers"] = json!({});
            }
            if is("holds-lost") {
                open["holds"] = json!({});
            }
        }
        let run = if is("run-kept") { kept["run"].as_str().unwrap().to_owned() } else { random() };
        let lease = Duration::from_millis(3000);
        // Nobody here remembers when the lease of an earlier run ended: it counts as over.
        let lease_until = (!kept["leased"].as_object().unwrap().is_empty()).then_some(0);
        let mut agent = Self {
            defect: defect.to_owned(),
            kept,
            run,
            members: Vec::new(),
            lease,
            lease_until,
            renew_at: None,
            heard_at: Instant::now(),
        };
        agent.keep();
        agent
    }

    fn is(&self, defect: &str) -> bool {
        self.defect == defect
    }

    /// Writes down what is about to be relied on.
    fn keep(&mut self) {
        let mut file = File::create("kept.new").unwrap();
        file.write_all(self.kept.to_string().as_bytes()).unwrap();
        file.sync_all().unwrap();
        fs::rename("kept.new", "kept.json").unwrap();
        File::open(".").unwrap().sync_all().unwrap();
    }

    fn say(&self, socket: &mut Socket, report: Value) -> Result<(), Over> {
        socket.send(Message::text(report.to_string())).map_err(|_| Over)
    }

    fn session(&mut self, mut socket: Socket) -> Result<(), Over> {
        if self.is("run-per-session") {
            self.run = random();
        }
        if self.is("agent-per-session") {
            self.kept["agent"] = json!(random());
        }
        self.renew_at = None;
        self.heard_at = Instant::now();
        let tokens = self.kept["tokens"].as_object().unwrap().values().filter_map(Value::as_u64);
        let open: Vec<u64> =
            self.kept["open"].as_object().unwrap().keys().map(|id| id.parse().unwrap()).collect();
        let hello = json!({ "report": "hello", "protocol": if self.is("protocol-2") { 2 } else { 1 }, "host": "small",
            "agent": self.kept["agent"], "run": self.run, "labels": {}, "token": tokens.max().unwrap_or(0),
            "reign": if self.is("reign-forgotten") { json!(0) } else { self.kept["reign"].clone() },
            "cluster": if self.is("cluster-forgotten") { &Value::Null } else { &self.kept["cluster"] },
            "open": if self.is("open-left-out") { Vec::new() } else { open }, "noticed": self.kept["noticed"] });
        self.say(&mut socket, hello)?;
        if self.is("talks-early") {
            self.say(&mut socket, json!({ "report": "renew", "sent": now_ms() }))?;
        }
        loop {
            if self.lapse() {
                return Err(Over);
            }
            self.end_holds(&mut socket)?;
            let now = Instant::now();
            if self.renew_at.is_some_and(|at| at <= now) {
                let third = if self.is("renews-late") { self.lease * 9 / 10 } else { self.lease / 3 };
                self.renew_at = Some(now + third);
                self.say(&mut socket, json!({ "report": "renew", "sent": now_ms() }))?;
            }
            if now > self.heard_at + self.lease * 2 / 3 && !self.is("patient") && !self.is("renews-late") {
                return Err(Over);
            }
            socket.get_ref().set_read_timeout(Some(Duration::from_millis(20))).unwrap();
            match socket.read() {
                Ok(Message::Text(text)) => {
                    self.heard_at = Instant::now();
                    self.order(&mut socket, &serde_json::from_str(&text).map_err(|_| Over)?)?;
                }
                Ok(Message::Ping(_) | Message::Pong(_)) => {}
                Ok(Message::Binary(_) | Message::Close(_) | Message::Frame(_)) => return Err(Over),
                Err(Error::Io(error)) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => return Err(Over),
            }
        }
    }

    fn order(&mut self, socket: &mut Socket, order: &Value) -> Result<(), Over> {
        if self.is("strict-fields") && order.get("a_new_field").is_some() {
            return Err(Over);
        }
        match order["order"].as_str().unwrap() {
            "welcome" => {
                if order["reign"].as_u64() < self.kept["reign"].as_u64() && !self.is("any-reign") {
                    return Err(Over);
                }
                self.kept["reign"] = order["reign"].clone();
                if order["cluster"].is_string() {
                    self.kept["cluster"] = order["cluster"].clone();
                }
                self.keep();
                self.lease = Duration::from_millis(order["lease_ms"].as_u64().unwrap());
                let later = if self.is("renews-after-a-third") { self.lease / 3 } else { Duration::ZERO };
                self.renew_at = Some(Instant::now() + later);
                self.members.clear();
                self.assign(socket, order, true)
            }
            "assign" => self.assign(socket, order, !self.is("assigned-later-unreported")),
            "call" => self.call(socket, order),
            "outcome" => self.outcome(socket, order),
            "notice" => self.notice(socket, order),
            "renewed" => {
                if let Some(ms) = order["lease_ms"].as_u64().filter(|_| !self.is("lease-fixed")) {
                    self.lease = Duration::from_millis(ms);
                }
                self.lease_until = Some(order["sent"].as_u64().unwrap() + self.lease_ms());
                Ok(())
            }
            "refused" => Err(Over),
            _ if self.is("strict-orders") => Err(Over),
            _ => Ok(()),
        }
    }

    fn assign(&mut self, socket: &mut Socket, order: &Value, is_told: bool) -> Result<(), Over> {
        let members: Vec<Value> =
            order["members"].as_array().unwrap().iter().map(|known| known["member"].clone()).collect();
        for member in members.iter().filter(|member| is_told && !self.members.contains(member)) {
            self.report(socket, member)?;
        }
        self.members = members;
        let needs = |known: &&Value| known["leased"].as_array().is_some_and(|states| !states.is_empty());
        let leased = order["members"].as_array().unwrap().iter().filter(needs);
        let leased = leased.map(|known| (known["member"].as_str().unwrap().to_owned(), known.clone()));
        self.kept["leased"] = leased.collect();
        self.keep();
        Ok(())
    }

    fn lease_ms(&self) -> u64 {
        u64::try_from(self.lease.as_millis()).unwrap()
    }

    /// Whether the lease stands, and is not about to end.
    fn has_lease(&self) -> bool {
        self.lease_until.is_some_and(|until| now_ms() + self.lease_ms() / 10 < until)
    }

    /// Stops those that need the lease, a tenth of it before it ends. Tells whether it does now.
    fn lapse(&mut self) -> bool {
        let late_ms = if self.is("stops-late") { self.lease_ms() / 5 } else { 0 };
        let is_over =
            self.lease_until.is_some_and(|until| now_ms() + self.lease_ms() / 10 >= until + late_ms);
        let is_needed = !self.kept["leased"].as_object().unwrap().is_empty();
        if !is_over || self.is("lease-end-ignored") {
            return false;
        }
        // Whoever is told of leased states after that begins with its next lease.
        self.lease_until = None;
        for (member, known) in self.kept["leased"].as_object().unwrap().clone() {
            let state = self.kept["states"].get(&member).unwrap_or(&known["lowest"]);
            if known["leased"].as_array().unwrap().contains(state) {
                self.carry_out("stop", &json!({ "member": member, "to": known["lowest"] }));
                self.keep();
            }
        }
        is_needed
    }

    /// Whether a call leads to where nobody may be without a lease.
    fn needs_lease(&self, member: &Value, phase: &str, to: &Value) -> bool {
        let leased = self.kept["leased"].get(member.as_str().unwrap());
        let states = leased.and_then(|known| known["leased"].as_array());
        matches!(phase, "commit" | "undo") && states.is_some_and(|states| states.contains(to))
    }

    fn report(&self, socket: &mut Socket, member: &Value) -> Result<(), Over> {
        let state = self.kept["states"].get(member.as_str().unwrap()).cloned();
        let state = state.unwrap_or(json!("offline"));
        self.say(socket, json!({ "report": "state", "member": member, "state": state }))
    }

    /// What the members' software does.
    fn carry_out(&mut self, phase: &str, order: &Value) {
        let mut calls = File::options().create(true).append(true).open("calls").unwrap();
        writeln!(calls, "{phase} {}", id(order)).unwrap();
        if matches!(phase, "commit" | "undo" | "stop") {
            self.kept["states"][order["member"].as_str().unwrap()] = order["to"].clone();
        }
    }

    fn done(&self, order: &Value, answer: &str) -> Value {
        let mut done = json!({ "report": "done", "answer": answer, "findings": {} });
        for key in ["member", "phase", "transition", "step", "attempt", "plan"] {
            if order.get(key).is_some() && !(key == "plan" && self.is("plan-left-out")) {
                done[key] = order[key].clone();
            }
        }
        if self.is("wrong-attempt") {
            done["attempt"] = json!(7);
        }
        done
    }

    fn call(&mut self, socket: &mut Socket, order: &Value) -> Result<(), Over> {
        let (member, phase) = (order["member"].clone(), order["phase"].as_str().unwrap());
        let group = if self.is("token-of-all-groups") { "all".to_owned() } else { group(&member) };
        let known = self.kept["tokens"].get(&group).and_then(Value::as_u64).unwrap_or(0);
        if let Some(token) = order["token"].as_u64() {
            if token < known && !self.is("token-unchecked") {
                let mut done = self.done(order, "no");
                if !self.is("refused-left-out") {
                    done["refused"] = json!(known);
                }
                return self.say(socket, done);
            }
            self.kept["tokens"][&group] = json!(token);
        }
        let is_closed = self.kept["closed"].get(id(order)).is_some();
        if is_closed && (phase != "release" || self.is("release-refused-late")) {
            return self.say(socket, self.done(order, "no"));
        }
        if self.needs_lease(&member, phase, &order["to"]) && !self.has_lease() && !self.is("lease-unchecked")
        {
            return self.say(socket, self.done(order, "again"));
        }
        let plan = if self.is("plan-unseen") { &Value::Null } else { &order["plan"] };
        let key = format!("{member} {phase} {} {plan}", order["step"]);
        if !is_closed {
            let open = &mut self.kept["open"][id(order)];
            if open.is_null() {
                *open = json!({ "answers": {}, "prepared": {}, "holds": {} });
            }
            let is_answered = open["answers"].get(&key).is_some();
            if is_answered && !self.is("carried-out-twice") {
                return self.say(socket, self.done(order, "yes"));
            }
            let open = &mut self.kept["open"][id(order)];
            let name = member.as_str().unwrap();
            match phase {
                "prepare" => open["prepared"][name] = json!(true),
                "commit" | "undo" | "cancel" => _ = open["prepared"].as_object_mut().unwrap().remove(name),
                "hold" => {
                    let ms = order["hold_ms"].as_u64().unwrap();
                    let ms = if self.defect == "hold-too-short" { ms / 2 } else { ms };
                    open["holds"][name] = json!(now_ms() + ms);
                }
                "release" => _ = open["holds"].as_object_mut().unwrap().remove(name),
                _ => {}
            }
        }
        self.keep();
        self.carry_out(phase, order);
        if !is_closed {
            self.kept["open"][id(order)]["answers"][&key] = json!(true);
        }
        self.keep();
        if phase == "release" && self.is("hold-end-despite-release") {
            let ended =
                json!({ "report": "hold-ended", "transition": order["transition"], "member": member });
            self.say(socket, ended)?;
        }
        let answer = if phase == "undo" && self.is("undo-no") { "no" } else { "yes" };
        self.say(socket, self.done(order, answer))
    }

    fn outcome(&mut self, socket: &mut Socket, order: &Value) -> Result<(), Over> {
        if order["outcome"].is_null() || self.is("outcome-ignored") {
            return Ok(());
        }
        let open = self.kept["open"].get(id(order)).cloned().unwrap_or_default();
        for member in open["prepared"].as_object().unwrap_or(&Map::new()).keys() {
            if !self.is("cancel-forgotten") {
                self.carry_out("cancel", &json!({ "transition": order["transition"], "member": member }));
            }
        }
        if !self.is("never-forgets") {
            self.kept["open"].as_object_mut().unwrap().remove(&id(order));
        }
        self.kept["closed"][id(order)] = json!(true);
        self.keep();
        if self.is("state-unreported") {
            return Ok(());
        }
        self.members.clone().iter().try_for_each(|member| self.report(socket, member))
    }

    fn notice(&mut self, socket: &mut Socket, order: &Value) -> Result<(), Over> {
        let is_new = order["index"].as_u64() > self.kept["noticed"].as_u64();
        if is_new || self.is("repetition-told") {
            for call in order["calls"].as_array().unwrap() {
                self.carry_out("notice", call);
            }
        }
        if is_new {
            self.kept["noticed"] = order["index"].clone();
            self.keep();
        } else if self.is("repetition-ignored") {
            return Ok(());
        }
        let index = if self.is("notices-backwards") { json!(1) } else { self.kept["noticed"].clone() };
        self.say(socket, json!({ "report": "noticed", "index": index }))
    }

    fn end_holds(&mut self, socket: &mut Socket) -> Result<(), Over> {
        if self.is("hold-without-end") {
            return Ok(());
        }
        for (id, open) in self.kept["open"].as_object().unwrap().clone() {
            for (member, until) in open["holds"].as_object().unwrap() {
                if until.as_u64().unwrap() > now_ms() || self.renew_at.is_none() {
                    continue;
                }
                let transition: u64 = id.parse().unwrap();
                let ended = json!({ "report": "hold-ended", "transition": transition, "member": member });
                self.carry_out("release", &ended);
                self.kept["open"][&id]["holds"].as_object_mut().unwrap().remove(member);
                self.keep();
                self.say(socket, ended)?;
            }
        }
        Ok(())
    }
}
