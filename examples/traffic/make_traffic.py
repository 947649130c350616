#!/usr/bin/env python3
"""Makes the bundled traffic logs, always the same ones; standard library only.

  make_traffic.py            writes quickstart.jsonl and heldout_math.jsonl beside itself
  make_traffic.py --check    exits with 1 if they are not what this script writes
  make_traffic.py --overlap LOG [INDEX...]   4-gram overlap of a log's quarters as JSON (of these requests only)

A line: {"timestamp": ms, "template": name, "body": an OpenAI chat request}. Two domains, mixed throughout:
  support  replies of a shop's customer service, grounded in an order record that stands in the prompt
  data     small programming and data chores: records to JSON, SQL or Markdown, functions, tests, configuration
Business traffic repeats itself in form, never in full: every prompt is distinct, and forms come and go. Each
domain has ten templates, of which a quarter of the log uses four: the window moves by two a quarter, so that
neighbouring quarters share two templates and the last quarter none with the first. One request in eight is a
long one (a batch of records, a thread of earlier messages). Half are greedy, half at temperature 0.8 with a seed.
heldout_math.jsonl is a third kind, grade-school word problems, in neither domain.
"""
import json
import os
import random
import sys

REQUESTS = 1200
HELD_OUT = 40
QUARTERS = 4
TEMPLATES_A_QUARTER = 4
LONG_SHARE = 1 / 8
MEAN_GAP_MS = 1100

FIRST = """Amara Ben Carla Dmitri Elena Farid Grace Hiro Ines Jonas Keiko Liam Marta Nadia Omar Priya Quentin Rosa
Samuel Tara Umar Vera Wendy Xavier Yusuf Zoe Anton Bianca Cedric Daria Emil Fiona Gustav Hanna Igor Julia""".split()
LAST = """Abbott Becker Castillo Duarte Eriksen Fischer Garcia Haddad Ivanova Jensen Kowalski Lindqvist Moreau Nakamura
Okafor Petrov Quinn Rossi Santos Tanaka Ueda Varga Weber Xu Yilmaz Zhang Achterberg Brandt Cohen Dubois""".split()
CITIES = """Lisbon Hamburg Krakow Lyon Porto Ghent Malmo Turin Leeds Cork Bilbao Graz Brno Utrecht Aarhus Tampere Riga
Split Varna Bergen Seville Dresden Nantes Verona""".split()
COLOURS = "black white navy olive grey red teal sand copper forest".split()
ITEMS = ["wireless headphones", "standing desk", "espresso machine", "hiking backpack", "mechanical keyboard", "air purifier",
         "rain jacket", "desk lamp", "electric kettle", "yoga mat", "trail running shoes", "portable charger", "cast iron pan",
         "office chair", "smart thermostat", "cordless drill", "ceramic dinner set", "bicycle helmet", "camping tent",
         "robot vacuum", "water filter", "monitor arm", "travel pillow", "coffee grinder"]
CARRIERS = ["Northline Express", "BlueVan", "PostEuropa", "SwiftParcel", "Harbor Freight Lines"]
REASONS = ["the lid does not close", "one part is missing from the box", "the colour is not the one I ordered",
           "it stopped working after two days", "the box arrived dented", "it is smaller than I expected",
           "it makes a loud noise", "the strap is torn", "the battery does not charge", "there is a scratch on the front"]
MONTHS = "January February March April May June July August September October November December".split()


class Make:
    """What a template draws from: one random stream a request."""

    def __init__(self, rng, long):
        self.rng, self.long = rng, long

    def pick(self, of):
        return self.rng.choice(of)

    def name(self):
        return f"{self.pick(FIRST)} {self.pick(LAST)}"

    def date(self):
        return f"{self.rng.randint(1, 28)} {self.pick(MONTHS)}"

    def iso(self):
        return f"2026-{self.rng.randint(1, 12):02d}-{self.rng.randint(1, 28):02d}"

    def price(self):
        return f"{self.rng.randint(9, 389)}.{self.pick(['00', '50', '90', '95', '99'])}"

    def order(self):
        return f"{self.pick('ABCDEFGHKLMNPRSTVWXYZ')}{self.pick('ABCDEFGHKLMNPRSTVWXYZ')}-{self.rng.randint(10000, 99999)}"

    def email(self, name):
        return name.lower().replace(" ", ".") + "@" + self.pick(["mailbox", "postbox", "inbox"]) + ".example"

    def record(self, name=None):
        """An order record as a shop's system prints it."""
        name = name or self.name()
        return {"order": self.order(), "customer": name, "item": f"{self.pick(COLOURS)} {self.pick(ITEMS)}",
                "quantity": self.rng.randint(1, 4), "price": self.price(), "city": self.pick(CITIES),
                "ordered": self.date(), "carrier": self.pick(CARRIERS),
                "status": self.pick(["delivered", "in transit", "packed", "delayed", "returned"])}


def lines(record, keys=None):
    return "\n".join(f"{k}: {record[k]}" for k in (keys or record))


def thread(m, name, item):
    """Earlier messages of the same customer: what makes a support request long."""
    out = []
    for i in range(m.rng.randint(9, 10) if m.long else 0):
        who = name if i % 2 == 0 else "Support"
        text = (f"Hello, I am writing about my {item}. I noticed on {m.date()} that {m.pick(REASONS)}. I tried to find the answer on "
                f"your website but the page only says that I should contact you. Could you please tell me what I should do next?"
                if i % 2 == 0 else
                f"Dear {name.split()[0]}, thank you for your message of {m.date()}. We are sorry to hear about your {item}. We have "
                f"opened case {m.rng.randint(100000, 999999)} and asked {m.pick(CARRIERS)} for details. We will write to you again "
                f"within {m.rng.randint(2, 5)} working days.")
        out.append(f"[{m.iso()}] {who}: {text}")
    return ("\n\nEarlier messages:\n" + "\n".join(out)) if out else ""


# --- support: each returns (system, user, max_tokens) ---

def where_is_it(m):
    r = m.record()
    return ("You write replies for the support team of Larkfield Home. Greet the customer by name, state the order number, the item and "
            "its status, say what happens next, and close with: Kind regards, Larkfield Home Support.",
            f"Order record:\n{lines(r)}{thread(m, r['customer'], r['item'])}\n\nThe customer asks: Where is my {r['item']}? I ordered it "
            f"on {r['ordered']} and I need it by {m.date()}.\n\nWrite the reply.", 110)


def broken(m):
    r = m.record()
    return ("You write replies for the support team of Larkfield Home. Apologise once, repeat what is wrong, offer a replacement or a "
            "refund, ask for a photo, and close with: Kind regards, Larkfield Home Support.",
            f"Order record:\n{lines(r)}{thread(m, r['customer'], r['item'])}\n\nThe customer writes: I received my {r['item']} but "
            f"{m.pick(REASONS)}. What can you do?\n\nWrite the reply.", 120)


def change_address(m):
    r = m.record()
    return ("You are a support agent of Larkfield Home. Confirm changes by repeating the old and the new value.",
            f"{lines(r)}{thread(m, r['customer'], r['item'])}\n\nMessage from {r['customer']}: Please send order {r['order']} to "
            f"{m.rng.randint(1, 180)} {m.pick(LAST)} Street in {m.pick(CITIES)} instead of {r['city']}.\n\nReply in one short "
            "paragraph, then list the updated order record line by line.", 120)


def summarise_case(m):
    r = m.record()
    return ("You summarise support cases for the next agent.",
            f"Case of {r['customer']}, order {r['order']}.\n{lines(r)}\nNote by the first agent: the customer called on {m.date()} and said "
            f"that {m.pick(REASONS)}. The customer wants a refund of {r['price']} euros.{thread(m, r['customer'], r['item'])}\n\n"
            "Summarise the case as bullet points: customer, order, item, problem, wish, next step.", 110)


def refund_status(m):
    r = m.record()
    return ("Answer as the refunds desk of Tidewater Outfitters. Be brief and exact with dates and amounts.",
            f"Refund file\ncustomer = {r['customer']}\norder = {r['order']}\nitem = {r['item']}\namount = {r['price']} EUR\nreceived back = "
            f"{m.date()}\nrefund sent = {m.date()}\nmethod = {m.pick(['card', 'bank transfer', 'gift card'])}"
            f"{thread(m, r['customer'], r['item'])}\n\n{r['customer']} asks when the refund for order {r['order']} arrives. Write the answer.",
            100)


def delay_notice(m):
    r = m.record()
    return ("You write delay notices for Tidewater Outfitters. Each notice names the order, the item, the carrier, the old and the new "
            "delivery date, and offers to cancel free of charge.",
            f"order {r['order']} | {r['customer']} | {r['quantity']} x {r['item']} | carrier {r['carrier']} | planned {m.date()} | new date "
            f"{m.date()} | reason: {m.pick(['snow', 'a strike', 'customs', 'a broken truck', 'high demand'])}"
            f"{thread(m, r['customer'], r['item'])}\n\nWrite the delay notice to the customer.", 120)


def return_steps(m):
    r = m.record()
    return ("Explain returns for Tidewater Outfitters as numbered steps.",
            f"{r['customer']} wants to return {r['quantity']} {r['item']} from order {r['order']}. Return window: {m.pick([14, 30, 60])} days. "
            f"Label: sent to {m.email(r['customer'])}. Drop-off: any {r['carrier']} point in {r['city']}. Refund: {r['price']} euros after "
            f"inspection.{thread(m, r['customer'], r['item'])}\n\nWrite the steps for the customer.", 130)


def warranty(m):
    r = m.record()
    serial = f"SN{m.rng.randint(10**7, 10**8 - 1)}"
    return ("You are the warranty desk of Alder and Finch. Start every letter with Re: and the serial number. Sign as Alder and Finch Warranty.",
            f"WARRANTY CLAIM\nSerial: {serial}\nProduct: {r['item']}\nOwner: {r['customer']}, {r['city']}\nBought: {r['ordered']} for "
            f"{r['price']} euros\nFault reported: {m.pick(REASONS)}\nDecision: {m.pick(['repair', 'replace', 'decline, out of warranty'])}"
            f"{thread(m, r['customer'], r['item'])}\n\nWrite the letter that tells the owner the decision.", 130)


def invoice_question(m):
    r = m.record()
    net = m.rng.randint(40, 900)
    return ("You answer questions about invoices for Alder and Finch. Quote the invoice lines you refer to.",
            f"INVOICE {m.rng.randint(2000, 9999)}-{m.rng.randint(10, 99)}\nTo: {r['customer']}\nLine 1: {r['quantity']} x {r['item']}, net {net} EUR\n"
            f"Line 2: delivery to {r['city']} by {r['carrier']}, net {m.rng.randint(5, 25)} EUR\nVAT: {m.pick([19, 20, 21, 23])} percent\nDue: "
            f"{m.iso()}{thread(m, r['customer'], r['item'])}\n\nQuestion from the customer: Why is there a second line on my invoice, and "
            "when do I have to pay?\n\nAnswer the question.", 110)


def appointment(m):
    r = m.record()
    return ("You schedule technician visits for Alder and Finch. Confirm date, time window, address, technician and what to prepare.",
            f"VISIT {m.rng.randint(1000, 9999)}\nfor: {r['customer']}\nappliance: {r['item']}\nwhere: {m.rng.randint(1, 99)} {m.pick(LAST)} Lane, "
            f"{r['city']}\nwhen: {m.iso()} between {m.rng.randint(8, 11)}:00 and {m.rng.randint(12, 17)}:00\ntechnician: {m.name()}\nprepare: "
            f"{m.pick(['clear the access', 'have the invoice ready', 'unplug the appliance', 'keep pets away'])}"
            f"{thread(m, r['customer'], r['item'])}\n\nWrite the confirmation message.", 120)


# --- data ---

def rows(m, short, long):
    return [m.record() for _ in range(m.rng.randint(*(long if m.long else short)))]


def to_json(m):
    text = "\n".join(f"{r['order']}; {r['customer']}; {r['item']}; {r['quantity']}; {r['price']}" for r in rows(m, (3, 4), (24, 28)))
    return ("You convert records. Output only the result.",
            f"Convert these orders to a JSON array of objects with the keys order, customer, item, quantity and price.\n\n{text}",
            280 if m.long else 150)


def to_sql(m):
    table = m.pick(["orders", "sales", "shipments", "purchases", "deliveries"])
    text = "\n".join(f"{r['order']},{r['customer']},{r['city']},{r['price']}" for r in rows(m, (3, 5), (29, 32)))
    return ("You write SQL. Output only SQL statements.",
            f"Write one INSERT statement a row for the table {table} (id, customer, city, price):\n\n{text}", 260 if m.long else 140)


FUNCTIONS = [("running_total", "returns the running totals of a list of numbers"), ("count_words", "counts how often each word occurs in a text"),
             ("is_palindrome", "tells whether a string reads the same backwards"), ("chunk", "splits a list into pieces of size n"),
             ("flatten", "flattens a list of lists"), ("parse_price", "turns a text like '12.50 EUR' into a float"),
             ("median", "returns the median of a list"), ("dedupe", "removes duplicates and keeps the order"),
             ("transpose", "transposes a matrix given as a list of rows"), ("merge_sorted", "merges two sorted lists"),
             ("clamp", "limits a value to a range"), ("slugify", "turns a title into a URL slug"),
             ("group_by_city", "groups order records by their city"), ("moving_average", "returns the moving average of a list"),
             ("fibonacci", "returns the first n Fibonacci numbers"), ("hamming", "counts the positions at which two strings differ"),
             ("to_celsius", "converts Fahrenheit to Celsius"), ("most_common", "returns the most common element of a list"),
             ("rotate", "rotates a list by k positions"), ("gcd", "returns the greatest common divisor")]
VARIABLES = "values items numbers records entries data rows samples elements prices".split()


def code_context(m):
    """Functions that already stand in the module: what makes a programming request long."""
    if not m.long:
        return ""
    out = []
    for name, what in m.rng.sample(FUNCTIONS, 11):
        v = m.pick(VARIABLES)
        out.append(f"def {name}_{m.rng.randint(2, 99)}({v}):\n    \"\"\"{what.capitalize()}.\"\"\"\n    result = []\n    for index, value in "
                   f"enumerate({v}):\n        if value is None:\n            raise ValueError(f\"no value at {{index}}\")\n"
                   f"        result.append(value)\n    return result\n")
    return "\n\nThe module so far:\n\n" + "\n\n".join(out)


def write_function(m):
    name, what = m.pick(FUNCTIONS)
    return ("You are a Python programmer. Write short, documented functions.",
            f"Write a Python function {name}_{m.rng.randint(2, 999)}({m.pick(VARIABLES)}) that {what}. Add a docstring and an example for "
            f"{m.name().split()[0]}'s {m.pick(['report', 'notebook', 'service', 'script'])}.{code_context(m)}", 150)


def add_tests(m):
    name, what = m.pick(FUNCTIONS)
    v = m.pick(VARIABLES)
    return ("You write unit tests with pytest.",
            f"Function under test ({m.pick(['module', 'file'])} {m.pick(VARIABLES)}_{m.rng.randint(1, 99)}.py):\n\ndef {name}({v}, "
            f"default={m.rng.randint(0, 99)}):\n    \"\"\"{what.capitalize()}.\"\"\"\n    if not {v}:\n        return default\n    ...\n"
            f"{code_context(m)}\n\nWrite four tests for {name}: an empty input, one element, several elements, a wrong type.", 170)


def to_markdown(m):
    keys = m.rng.sample(["order", "customer", "item", "city", "price", "status"], 4)
    text = "\n".join(" / ".join(f"{k} {r[k]}" for k in keys) for r in rows(m, (4, 5), (26, 30)))
    return ("You format tables in Markdown.", f"Make a Markdown table with the columns {', '.join(keys)} from these lines:\n\n{text}",
            280 if m.long else 150)


def dataclass(m):
    fields = m.rng.sample(["order_id", "customer_name", "item_name", "unit_price", "quantity", "city", "carrier", "created_at", "is_paid",
                           "discount", "notes", "weight_kg"], m.rng.randint(5, 7))
    return ("You are a Python programmer who uses dataclasses and type hints.",
            f"Write a dataclass {m.pick(LAST)}{m.pick(['Order', 'Record', 'Row', 'Entry'])} with the fields {', '.join(fields)}, a method "
            f"from_dict and a method to_dict.{code_context(m)}", 190)


def explain_log(m):
    n = m.rng.randint(22, 25) if m.long else m.rng.randint(5, 6)
    service = m.pick(["checkout", "inventory", "billing", "search", "gateway"])
    text = "\n".join(f"{m.iso()} {m.rng.randint(0, 23):02d}:{m.rng.randint(0, 59):02d} {service}-{m.rng.randint(1, 9)} "
                     f"{m.pick(['INFO', 'WARN', 'ERROR'])} {m.pick(['request', 'retry', 'timeout', 'connection'])} order={m.order()} "
                     f"ms={m.rng.randint(3, 9000)}" for _ in range(n))
    return ("You explain log files to developers.",
            f"Log of the {service} service:\n\n{text}\n\nList every line with ERROR or WARN as: time, instance, what happened, order.",
            220 if m.long else 140)


def config_yaml(m):
    n = m.rng.randint(19, 21) if m.long else m.rng.randint(3, 4)
    text = "\n".join(f"- service {m.pick(LAST).lower()}-{m.pick(VARIABLES)}: port {m.rng.randint(1024, 9999)}, replicas {m.rng.randint(1, 9)}, "
                     f"memory {m.pick([128, 256, 512, 1024])} MB, region {m.pick(CITIES).lower()}, log level {m.pick(['info', 'debug', 'warn'])}"
                     for _ in range(n))
    return ("You write YAML configuration files. Output YAML only.",
            f"Write one YAML entry with name, port, replicas, memory_mb, region and log_level for each of these services:\n\n{text}",
            300 if m.long else 150)


def xml_to_json(m):
    n = m.rng.randint(13, 15) if m.long else m.rng.randint(2, 3)
    text = "\n".join("<shipment id=\"{order}\"><to>{customer}</to><city>{city}</city><carrier>{carrier}</carrier><status>{status}</status>"
                     "</shipment>".format(**m.record()) for _ in range(n))
    return ("You translate XML into JSON and output JSON only.",
            f"Translate each shipment element into a JSON object with the keys id, to, city, carrier and status:\n\n<shipments>\n{text}\n"
            "</shipments>", 280 if m.long else 150)


def sql_queries(m):
    table, column = m.pick(["invoices", "visits", "claims", "parcels"]), m.pick(["city", "carrier", "status", "customer"])
    schema = f"CREATE TABLE {table} (\n  id INTEGER PRIMARY KEY,\n  {column} TEXT NOT NULL,\n  amount NUMERIC,\n  created_at DATE\n);"
    extra = ""
    if m.long:
        extra = "\n" + "\n".join(f"INSERT INTO {table} VALUES ({m.rng.randint(1, 99999)}, '{m.name()}', {m.price()}, '{m.iso()}');"
                                  for _ in range(m.rng.randint(21, 23)))
    return ("You write SQL queries with a one-line comment above each.",
            f"Schema:\n\n{schema}{extra}\n\nWrite three queries: the total amount by {column}, the five largest rows since {m.iso()}, and the "
            f"number of rows a month for {column} = '{m.pick(CITIES)}'.", 160)


SUPPORT = [where_is_it, broken, change_address, summarise_case, refund_status, delay_notice, return_steps, warranty, invoice_question,
           appointment]
DATA = [to_json, to_sql, write_function, add_tests, to_markdown, dataclass, explain_log, config_yaml, xml_to_json, sql_queries]


# --- held out: word problems ---

def word_problem(rng):
    a, b = rng.sample(FIRST, 2)
    item = rng.choice(["apples", "marbles", "stickers", "pencils", "cookies", "stamps", "shells", "coins"])
    n, k, p, d = rng.randint(12, 90), rng.randint(2, 9), rng.randint(2, 12), rng.randint(3, 10)
    problem = rng.choice([
        f"{a} has {n} {item}. {b} has {k} times as many. How many {item} do they have together?",
        f"A box holds {p} {item}. {a} fills {n} boxes and gives away {k} of them. How many {item} are left?",
        f"{a} reads {n} pages a day for {d} days. The book has {n * d + k * 10} pages. How many pages are left to read?",
        f"{a} buys {k} notebooks at {p} dollars each and pays with a {100 + n} dollar voucher. How much is left on the voucher?",
        f"A train travels {n} kilometres an hour for {d} hours and then {k * 10} kilometres more. How far does it travel in all?",
        f"{a} and {b} share {n * 2} {item} so that {a} gets {k * 2} more than {b}. How many does each of them get?",
        f"A garden has {p} rows of {n} plants. {k} plants in each row are roses. How many plants are not roses?",
        f"{a} earns {p} dollars an hour, works {d} hours a day and saves {k * 5} dollars a day. How much does {a} spend in {n} days?"])
    return "Solve the problem step by step and end with the answer on a line of its own.", problem, 160


def body(system, user, max_tokens, rng, greedy, domain):
    request = {"messages": [{"role": "system", "content": system}, {"role": "user", "content": user}], "max_tokens": max_tokens}
    if greedy:
        request["temperature"] = 0
    else:
        request |= {"temperature": 0.8, "seed": rng.randint(1, 2**31 - 1)}
    request["metadata"] = {"domain": domain}
    return request


def balanced(rng, n, share):
    """n booleans, round(n * share) of them true, shuffled."""
    flags = [i < round(n * share) for i in range(n)]
    rng.shuffle(flags)
    return flags


def quickstart():
    rng = random.Random("foretoken quickstart traffic 1")
    seen, out, clock = set(), [], 0.0
    per_quarter = REQUESTS // QUARTERS
    for quarter in range(QUARTERS):
        first = 2 * quarter
        support, long, greedy = (balanced(rng, per_quarter, share) for share in (0.5, LONG_SHARE, 0.5))
        for i in range(per_quarter):
            domain = "support" if support[i] else "data"
            window = (SUPPORT if support[i] else DATA)[first:first + TEMPLATES_A_QUARTER]
            while True:
                template = rng.choice(window)
                system, user, max_tokens = template(Make(rng, long[i]))
                if (system, user) not in seen:
                    break
            seen.add((system, user))
            clock += rng.expovariate(1 / MEAN_GAP_MS)
            out.append({"timestamp": round(clock), "template": f"{domain}/{template.__name__}",
                        "body": body(system, user, max_tokens, rng, greedy[i], domain)})
    return out


def heldout_math():
    rng = random.Random("foretoken held-out word problems 1")
    seen, out = set(), []
    greedy = balanced(rng, HELD_OUT, 0.5)
    while len(out) < HELD_OUT:
        system, user, max_tokens = word_problem(rng)
        if user in seen:
            continue
        seen.add(user)
        out.append({"timestamp": len(out) * MEAN_GAP_MS, "template": "math/word_problem",
                    "body": body(system, user, max_tokens, rng, greedy[len(out)], "math")})
    return out


def four_grams(text):
    words = text.split()
    return {tuple(words[i:i + 4]) for i in range(len(words) - 3)}


def overlap(quarters):
    """[later][earlier]: which share of the later quarter's distinct word 4-grams stands in the earlier one too."""
    grams = [set().union(*map(four_grams, texts)) if texts else set() for texts in quarters]
    return [[round(len(grams[j] & grams[i]) / len(grams[j]), 4) if grams[j] else None for i in range(len(grams))] for j in range(len(grams))]


def prompt_of(entry):
    return "\n".join(message["content"] for message in entry["body"]["messages"])


def quarters_of(texts_by_index, n):
    """Texts by log position -> lists by the log's quarter."""
    out = [[] for _ in range(QUARTERS)]
    for index, text in texts_by_index:
        out[index * QUARTERS // n].append(text)
    return out


def text_of(entries):
    return "".join(json.dumps(e, ensure_ascii=False, separators=(",", ":")) + "\n" for e in entries)


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    if sys.argv[1:2] == ["--overlap"]:
        with open(sys.argv[2], encoding="utf-8") as f:
            log = [json.loads(line) for line in f]
        chosen = [int(i) for i in sys.argv[3:]] or range(len(log))
        print(json.dumps(overlap(quarters_of([(i, prompt_of(log[i])) for i in chosen], len(log)))))
        return 0
    status = 0
    for name, entries in (("quickstart.jsonl", quickstart()), ("heldout_math.jsonl", heldout_math())):
        path, text = os.path.join(here, name), text_of(entries)
        if sys.argv[1:] == ["--check"]:
            with open(path, encoding="utf-8") as f:
                same = f.read() == text
            print(f"{name}: {'as made' if same else 'DIFFERS from what this script makes'}")
            status |= not same
            continue
        with open(path, "w", encoding="utf-8") as f:
            f.write(text)
        templates = [{e["template"] for e in entries[q * len(entries) // QUARTERS:(q + 1) * len(entries) // QUARTERS]} for q in range(QUARTERS)]
        print(f"{name}: {len(entries)} requests, {len({prompt_of(e) for e in entries})} distinct prompts, {len(text.encode()) / 1e6:.2f} MB, "
              f"templates of the first and last quarter in common: {len(templates[0] & templates[-1])}")
        print("  4-gram overlap of prompts, quarter (row) with quarter (column):")
        for row in overlap(quarters_of([(i, prompt_of(e)) for i, e in enumerate(entries)], len(entries))):
            print("   ", "  ".join(f"{v:.2f}" for v in row))
    return status


if __name__ == "__main__":
    sys.exit(main())
