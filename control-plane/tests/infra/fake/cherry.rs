//! The side of the fake that sells servers.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use super::World;
use super::wire::{Reply, Request};

/// The one team.
pub const TEAM: u64 = 123;
/// The project that servers are bought into.
pub const PROJECT: u64 = 321;
/// Another project of the team.
const OTHER_PROJECT: u64 = 322;

const IMAGES: [(u64, &str, &str, bool); 3] = [
    (40785, "Debian 12 64bit", "debian_12_64bit", false),
    (40790, "Ubuntu 24.04 64bit", "ubuntu_24_04_64bit", false),
    (40012, "Licensed OS 64bit", "licensed_os_64bit", true),
];
const REGIONS: [(u64, &str, &str, &str); 2] =
    [(1, "LT-Siauliai", "LT", "Lithuania, Siauliai"), (2, "NL-Amsterdam", "NL", "Netherlands, Amsterdam")];

/// A kind of server.
struct Kind {
    id: u64,
    slug: &'static str,
    kind: &'static str,
    cores: u64,
    /// GB
    memory: u64,
    /// GB
    disk: u64,
    prices: &'static [(u64, &'static str, &'static str)],
    regions: &'static [(&'static str, u64)],
}

const KINDS: [Kind; 2] = [
    Kind {
        id: 625,
        slug: "B1-1-1gb-20s-shared",
        kind: "vps",
        cores: 1,
        memory: 1,
        disk: 20,
        prices: &[(37, "Hourly", "0.015"), (3, "Monthly", "8.25")],
        regions: &[("LT-Siauliai", 122), ("NL-Amsterdam", 0)],
    },
    Kind {
        id: 86,
        slug: "e3_1240v3",
        kind: "baremetal",
        cores: 4,
        memory: 16,
        disk: 250,
        prices: &[
            (37, "Hourly", "0.084"),
            (3, "Monthly", "49"),
            (4, "Quarterly", "139.65"),
            (6, "Annually", "499.8"),
            (38, "Spot hourly", "0.0671"),
        ],
        regions: &[("LT-Siauliai", 23)],
    },
];

/// A server that was bought.
#[derive(Debug, Clone)]
pub struct Machine {
    pub id: u64,
    pub project: u64,
    pub plan: String,
    pub region: String,
    pub image: String,
    pub hostname: String,
    pub cycle: String,
    pub password: String,
    pub tags: BTreeMap<String, String>,
    /// As it would run on the machine.
    pub user_data: Option<String>,
    pub created_at: DateTime<Utc>,
    pub deleted_at: Option<DateTime<Utc>>,
    pub address: String,
    pub powered: bool,
    pub is_rescued: bool,
    pub reboots: u32,
    pub rebuilds: u32,
    /// How many looks until it is deployed.
    looks: u32,
    fails: bool,
}

/// What a test asks about purchases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bought {
    /// Accepted orders.
    pub total: usize,
    /// Of these, not deleted.
    pub alive: usize,
}

/// What the seller of servers knows.
pub struct Cherry {
    pub machines: BTreeMap<u64, Machine>,
    /// By plan and unit.
    pub prices: BTreeMap<(String, String), String>,
    /// By plan and region.
    pub stock: BTreeMap<(String, String), u64>,
    /// How many looks at a server until it is deployed.
    pub looks: u32,
    /// The next server fails to deploy.
    pub fail_next: bool,
    /// The account has no money.
    pub is_broke: bool,
    pub currency: String,
    /// Whether prices hold VAT.
    pub taxed: bool,
    /// Percent.
    pub vat: u64,
    /// Where the next servers answer; empty: addresses are made up.
    pub addresses: Vec<String>,
    /// Servers that nobody bought here, by id.
    pub hidden: BTreeSet<u64>,
    /// Servers that go, one after each page of a list that was read.
    pub going: Vec<u64>,
}

impl Default for Cherry {
    fn default() -> Self {
        Self {
            machines: BTreeMap::new(),
            prices: BTreeMap::new(),
            stock: BTreeMap::new(),
            looks: 0,
            fail_next: false,
            is_broke: false,
            currency: "USD".to_owned(),
            taxed: false,
            vat: 21,
            addresses: Vec::new(),
            hidden: BTreeSet::new(),
            going: Vec::new(),
        }
    }
}

impl Cherry {
    /// A server that was bought before the test began.
    pub fn put(&mut self, id: u64, plan: &str, address: &str) {
        let machine = Machine {
            id,
            project: PROJECT,
            plan: plan.to_owned(),
            region: REGIONS[0].1.to_owned(),
            image: IMAGES[0].2.to_owned(),
            hostname: format!("server-{id}"),
            cycle: "monthly".to_owned(),
            password: format!("invented-Passw0rd{id}x"),
            tags: BTreeMap::new(),
            user_data: None,
            created_at: Utc::now(),
            deleted_at: None,
            address: address.to_owned(),
            powered: true,
            is_rescued: false,
            reboots: 0,
            rebuilds: 0,
            looks: 0,
            fails: false,
        };
        self.machines.insert(id, machine);
    }

    /// How many servers were bought with a tag of this value.
    pub fn bought(&self, tag: &str) -> Bought {
        let with_tag =
            self.machines.values().filter(|machine| machine.tags.values().any(|value| value == tag));
        let all: Vec<&Machine> = with_tag.collect();
        Bought { total: all.len(), alive: all.iter().filter(|one| one.deleted_at.is_none()).count() }
    }
}

fn problem(status: u16, message: &str) -> Reply {
    Reply::json(status, &json!({ "code": status, "message": message }))
}

fn id(path: &[String]) -> u64 {
    path.first().and_then(|id| id.parse().ok()).unwrap_or_default()
}

/// Does what an operation says.
pub fn act(world: &mut World, operation: &str, path: &[String], request: &Request) -> Reply {
    let body = request.body.clone().unwrap_or(Value::Null);
    let first = path.first().cloned().unwrap_or_default();
    match operation {
        "getCurrentUser" => Reply::json(200, &json!({ "id": 77, "email": "ops@example.com" })),
        "listTeams" => list(request, vec![team(&world.cherry)]),
        "getTeam" if id(path) == TEAM => Reply::json(200, &team(&world.cherry)),
        "listProjects" if id(path) == TEAM => {
            list(request, [PROJECT, OTHER_PROJECT].into_iter().map(project).collect())
        }
        "getProject" if [PROJECT, OTHER_PROJECT].contains(&id(path)) => Reply::json(200, &project(id(path))),
        "listPublicPlans" => list(request, KINDS.iter().map(|kind| plan(&world.cherry, kind)).collect()),
        "listTeamPlans" if id(path) == TEAM => {
            list(request, KINDS.iter().map(|kind| plan(&world.cherry, kind)).collect())
        }
        "getPlan" => match KINDS.iter().find(|kind| kind.slug == first) {
            Some(kind) => Reply::json(200, &plan(&world.cherry, kind)),
            None => problem(404, "Not found"),
        },
        "listPlanImages" if KINDS.iter().any(|kind| kind.slug == first) => {
            list(request, IMAGES.iter().map(|one| image(&world.cherry, one)).collect())
        }
        "listRegions" => list(request, REGIONS.iter().map(|one| region(one.1)).collect()),
        "getRegion" if REGIONS.iter().any(|one| one.1 == first) => Reply::json(200, &region(&first)),
        "listCycles" => list(
            request,
            vec![
                json!({ "id": 37, "name": "Hourly", "slug": "hourly" }),
                json!({ "id": 3, "name": "Monthly", "slug": "monthly" }),
            ],
        ),
        "listServers" if [PROJECT, OTHER_PROJECT].contains(&id(path)) => {
            let alive = world.cherry.machines.values().filter(|one| one.deleted_at.is_none());
            let ids: Vec<u64> = alive.filter(|one| one.project == id(path)).map(|one| one.id).collect();
            for id in &ids {
                progress(&mut world.cherry, *id);
            }
            let hidden = &world.cherry.hidden;
            let shown = ids.iter().filter(|id| !hidden.contains(id));
            let page = list(request, shown.map(|id| server(&world.cherry.machines[id], false)).collect());
            if let Some(id) = world.cherry.going.pop() {
                world.cherry.machines.remove(&id);
            }
            page
        }
        "createServer" if [PROJECT, OTHER_PROJECT].contains(&id(path)) => create(world, id(path), &body),
        "getServer" => {
            progress(&mut world.cherry, id(path));
            match alive(&mut world.cherry, id(path)) {
                Some(machine) => Reply::json(200, &server(machine, false)),
                None => problem(404, "Not found"),
            }
        }
        "deleteServer" => {
            let now = world.now();
            match alive(&mut world.cherry, id(path)) {
                Some(machine) => {
                    machine.deleted_at = Some(now);
                    Reply { status: 204, ..Reply::default() }
                }
                None => problem(404, "Not found"),
            }
        }
        "serverAction" => match alive(&mut world.cherry, id(path)) {
            Some(machine) => change(machine, &body),
            None => problem(404, "Not found"),
        },
        _ => problem(404, "Not found"),
    }
}

fn alive(cherry: &mut Cherry, id: u64) -> Option<&mut Machine> {
    cherry.machines.get_mut(&id).filter(|machine| machine.deleted_at.is_none())
}

fn list(request: &Request, all: Vec<Value>) -> Reply {
    let number = |name: &str, usual| request.query(name).and_then(|text| text.parse().ok()).unwrap_or(usual);
    let (offset, limit): (usize, usize) = (number("offset", 0), number("limit", 20));
    let part: Vec<Value> = all.iter().skip(offset).take(limit).cloned().collect();
    let mut reply = Reply::json(200, &Value::Array(part));
    reply.headers.push(("x-total-count", all.len().to_string()));
    reply
}

fn number(text: &str) -> Value {
    serde_json::from_str(text).expect("a test's price is a number")
}

fn team(cherry: &Cherry) -> Value {
    let remaining = if cherry.is_broke { 0.0 } else { 412.5 };
    json!({
        "id": TEAM,
        "name": "otonix",
        "credit": {
            "account": { "remaining": remaining, "usage": 0.12, "currency": cherry.currency },
            "promo": { "remaining": 0, "usage": 0, "currency": cherry.currency },
        },
        "billing": {
            "type": "business", "country_iso_2": "LT",
            "vat": { "amount": cherry.vat, "valid": false }, "currency": cherry.currency,
        },
        "href": format!("/teams/{TEAM}"),
    })
}

fn project(id: u64) -> Value {
    json!({ "id": id, "name": format!("project-{id}"), "href": format!("/projects/{id}") })
}

fn region(slug: &str) -> Value {
    let known = REGIONS.iter().find(|one| one.1 == slug);
    let (id, slug, land, location) = known.copied().unwrap_or((0, "", "", ""));
    json!({ "id": id, "name": slug, "slug": slug, "region_iso_2": land, "location": location })
}

fn image(cherry: &Cherry, (id, name, slug, licensed): &(u64, &str, &str, bool)) -> Value {
    let mut image = json!({ "id": id, "name": name, "slug": slug });
    if *licensed {
        image["pricing"] = json!([{ "id": 37, "unit": "Hourly", "price": 0.015, "currency": cherry.currency, "taxed": cherry.taxed }]);
    }
    image
}

fn plan(cherry: &Cherry, kind: &Kind) -> Value {
    let price = |unit: &str, usual: &str| {
        let moved = cherry.prices.get(&(kind.slug.to_owned(), unit.to_owned()));
        number(moved.map_or(usual, String::as_str))
    };
    let pricing = kind.prices.iter().map(|(id, unit, usual)| {
        json!({ "id": id, "unit": unit, "price": price(unit, usual), "currency": cherry.currency, "taxed": cherry.taxed })
    });
    let stock = |slug: &str, usual: u64| {
        cherry.stock.get(&(kind.slug.to_owned(), slug.to_owned())).copied().unwrap_or(usual)
    };
    let regions = kind.regions.iter().map(|(slug, usual)| {
        let mut region = region(slug);
        region["stock_qty"] = json!(stock(slug, *usual));
        region["spot_qty"] = json!(0);
        region
    });
    json!({
        "id": kind.id, "name": kind.slug, "slug": kind.slug, "title": kind.slug, "custom": false, "type": kind.kind,
        "specs": {
            "cpus": { "count": 1, "name": "cpu", "cores": kind.cores, "frequency": 0.0, "unit": "GHz" },
            "memory": { "count": 1, "total": kind.memory, "unit": "GB", "name": format!("{}GB", kind.memory) },
            "storage": [{ "count": 1, "name": "SSD", "size": kind.disk, "unit": "GB", "type": "SSD" }],
        },
        "pricing": pricing.collect::<Vec<_>>(),
        "available_regions": regions.collect::<Vec<_>>(),
        "softwares": [{ "image": { "name": "Ubuntu 24.04 64bit", "slug": "ubuntu_24_04_64bit" } }],
        "href": format!("/plans/{}", kind.id),
    })
}

fn progress(cherry: &mut Cherry, id: u64) {
    if let Some(machine) = cherry.machines.get_mut(&id) {
        machine.looks = machine.looks.saturating_sub(1);
    }
}

fn create(world: &mut World, project: u64, body: &Value) -> Reply {
    let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
    let (slug, at, image) = (text("plan"), text("region"), text("image"));
    let Some(kind) = KINDS.iter().find(|kind| kind.slug == slug) else {
        return problem(400, "Plan not found");
    };
    let Some((_, usual)) = kind.regions.iter().find(|(region, _)| *region == at) else {
        return problem(400, "Region not found");
    };
    if !IMAGES.iter().any(|one| one.2 == image) {
        return problem(400, "Image not found");
    }
    let now = world.now();
    let serial = world.next();
    let cherry = &mut world.cherry;
    if cherry.is_broke {
        return problem(400, "Not enough credit");
    }
    let left = cherry.stock.entry((slug.clone(), at.clone())).or_insert(*usual);
    let Some(rest) = left.checked_sub(1) else {
        return problem(400, "No stock for the chosen plan in this region");
    };
    *left = rest;
    let user_data = body["user_data"].as_str().map(|encoded| {
        let bytes = STANDARD.decode(encoded).expect("user data is base64");
        String::from_utf8(bytes).expect("user data is text")
    });
    let tags = body["tags"].as_object().into_iter().flatten();
    let tags = tags.map(|(name, value)| (name.clone(), value.as_str().unwrap_or_default().to_owned()));
    let made_up = format!("185.150.{}.{}", serial / 250, serial % 250 + 1);
    let address = if cherry.addresses.is_empty() { made_up } else { cherry.addresses.remove(0) };
    let id = 383_530 + serial;
    let machine = Machine {
        id,
        project,
        plan: slug,
        region: at,
        image,
        hostname: text("hostname"),
        cycle: body["cycle"].as_str().unwrap_or("hourly").to_owned(),
        password: format!("invented-Passw0rd{serial}x"),
        tags: tags.collect(),
        user_data,
        created_at: now,
        deleted_at: None,
        address,
        powered: true,
        is_rescued: false,
        reboots: 0,
        rebuilds: 0,
        looks: cherry.looks + 1,
        fails: std::mem::take(&mut cherry.fail_next),
    };
    let shown = server(&machine, true);
    cherry.machines.insert(id, machine);
    Reply::json(201, &shown)
}

fn change(machine: &mut Machine, body: &Value) -> Reply {
    match body["type"].as_str().unwrap_or_default() {
        "reboot" => machine.reboots += 1,
        "power-on" => machine.powered = true,
        "power-off" => machine.powered = false,
        "rebuild" => machine.rebuilds += 1,
        "enter-rescue-mode" => machine.is_rescued = true,
        "exit-rescue-mode" => machine.is_rescued = false,
        other => return problem(400, &format!("Unknown action {other}")),
    }
    Reply::json(202, &server(machine, false))
}

fn server(machine: &Machine, is_new: bool) -> Value {
    let is_there = machine.looks == 0 && !is_new;
    let (state, status) = match (is_there, machine.fails, machine.is_rescued) {
        (false, _, _) if is_new => ("pending", "pending"),
        (false, _, _) => ("provisioning", "deploying"),
        (true, true, _) => ("inactive", "failed deployment"),
        (true, false, true) => ("active", "rescue mode"),
        (true, false, false) => (if machine.powered { "active" } else { "inactive" }, "deployed"),
    };
    let addresses = if is_there {
        json!([
            { "id": "1decf524-0000-4000-8000-22ce24df8de0", "address": machine.address, "address_family": 4,
              "cidr": format!("{}/24", machine.address), "type": "primary-ip", "region": region(&machine.region) },
            { "id": "571f30fb-0000-4000-8000-88cf41910000", "address": "10.168.101.7", "address_family": 4,
              "cidr": "10.168.101.7/24", "type": "private-ip", "region": region(&machine.region) },
        ])
    } else {
        json!([])
    };
    let kind = KINDS.iter().find(|kind| kind.slug == machine.plan);
    json!({
        "id": machine.id, "name": machine.plan, "href": format!("/servers/{}", machine.id),
        "hostname": machine.hostname, "username": "root", "password": machine.password,
        "bmc": { "user": "root", "password": format!("{}-bmc", machine.password) },
        "image": machine.image, "deployed_image": { "name": machine.image, "slug": machine.image },
        "spot_instance": false, "region": region(&machine.region), "state": state, "status": status,
        "plan": { "id": kind.map_or(0, |kind| kind.id), "name": machine.plan, "slug": machine.plan },
        "pricing": { "id": 37, "currency": "USD", "unit": "Hours", "price": 0.06, "taxed": false },
        "ip_addresses": addresses, "ssh_keys": [], "tags": machine.tags,
        "project": project(machine.project), "created_at": machine.created_at.to_rfc3339(),
        "termination_date": "None", "traffic_used_bytes": 0, "aFieldOfTomorrow": true,
    })
}
