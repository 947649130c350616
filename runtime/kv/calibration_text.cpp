// The bundled calibration text. Mixed on purpose: calibrating on one genre costs the others (a
// quarter more KL in our trials). Written for this project.
#include "runtime/kv/calibrate.h"

namespace foretoken {
namespace {

constexpr std::string_view kText =
    R"text(The ferry left at ten past six, while the harbour was still the colour of slate. Marta stood at the rail with her collar up and watched the lamps along the quay go out one after another, as if someone were walking there and pinching each flame between two fingers. She had packed in a quarter of an hour: two shirts, the good boots, her father's barometer wrapped in a towel. Nobody had asked where she was going, and she had been grateful for that until the moment the gangway was drawn in, when it began to feel like something owed to her and never paid.

Behind her a boy was explaining to his sister how tides worked. He had it almost right. "The moon pulls the water," he said, "and the water can't decide, so it goes back and forth." The sister wanted to know why the moon did not pull the boat as well. It did, he said, only the boat was too proud to show it.

By noon the wind had turned. The mate read out the forecast in a flat voice: north-west seven, occasionally gale eight, rain later, visibility moderate or poor. People who had been strangers at breakfast began to share their sandwiches.

User: My tomato plants have yellow leaves at the bottom, but the top looks fine. What am I doing wrong?
Assistant: Probably less than you fear. Lower leaves that yellow first usually mean one of three things:
1. Nitrogen is running low. The plant moves it from old leaves to new ones, so the oldest turn pale evenly.
2. Too much water. If the soil stays wet two fingers deep, let it dry before watering again.
3. Early blight. Look for brown spots with rings like a target; remove those leaves and keep the rest dry.
How often do you water, and are the yellow leaves spotted or plain?
User: Every evening, about two litres each. They're plain, no spots.
Assistant: Then I would start with the water: two litres every evening is a lot for a plant in a pot. Water in the morning, deeply, but only when the top few centimetres are dry. Add a balanced fertiliser once a week for a month. If the new growth stays green, you have fixed it.

```python
import heapq
from collections import defaultdict


def shortest_paths(edges, source):
    """Dijkstra's algorithm over an adjacency list built from (u, v, weight) triples."""
    graph = defaultdict(list)
    for u, v, weight in edges:
        if weight < 0:
            raise ValueError(f"negative weight on edge {u!r} -> {v!r}: {weight}")
        graph[u].append((v, weight))
    distance = {source: 0}
    queue = [(0, source)]
    while queue:
        d, node = heapq.heappop(queue)
        if d > distance.get(node, float("inf")):
            continue  # a shorter way was found since this entry was pushed
        for neighbour, weight in graph[node]:
            candidate = d + weight
            if candidate < distance.get(neighbour, float("inf")):
                distance[neighbour] = candidate
                heapq.heappush(queue, (candidate, neighbour))
    return distance


class RateLimiter:
    def __init__(self, rate, burst, clock):
        self.rate, self.burst, self.clock = rate, burst, clock
        self.tokens, self.updated = burst, clock()

    def allow(self, cost=1):
        now = self.clock()
        self.tokens = min(self.burst, self.tokens + (now - self.updated) * self.rate)
        self.updated = now
        if self.tokens >= cost:
            self.tokens -= cost
            return True
        return False
```

Question: A baker sells 48 rolls in the morning and half as many in the afternoon. Each roll costs 35 cents to make and sells for 90 cents. Rent is 12 euros a day. What is the day's profit?
Answer: In the afternoon she sells 48 / 2 = 24 rolls, so 48 + 24 = 72 rolls in all. Each earns 0.90 - 0.35 = 0.55 euros, together 72 * 0.55 = 39.60 euros. After rent, 39.60 - 12 = 27.60 euros remain. The answer is 27.60.

Die Bibliothek am Markt schließt freitags schon um fünf, und so kam es, dass Herr Albrecht mit drei ungelesenen Büchern unter dem Arm im Regen stand. Er hatte sich vorgenommen, nur eines mitzunehmen, ein schmales über die Geschichte der Uhrmacher in Glashütte; aber wie immer hatte ihn das Regal mit den Neuzugängen aufgehalten. „Man kann ja nicht wissen, was man braucht“, sagte er zu der Bibliothekarin, und sie antwortete, ohne aufzusehen: „Deshalb haben wir so viele.“ Auf dem Heimweg zählte er die Straßenlaternen, die nicht brannten: vier von elf. Das würde er morgen melden, falls das Formular inzwischen wieder funktionierte.

SELECT c.name, COUNT(o.id) AS orders, ROUND(AVG(o.total), 2) AS mean_total
FROM customers AS c
LEFT JOIN orders AS o ON o.customer_id = c.id AND o.created_at >= DATE '2024-01-01'
WHERE c.country IN ('NL', 'BE', 'LU')
GROUP BY c.name
HAVING COUNT(o.id) > 3
ORDER BY mean_total DESC
LIMIT 20;

The liver is the only organ of the human body that regrows from a fragment. After a third of it is removed, the remaining cells leave their resting state within hours, copy their DNA, and divide once or twice; within weeks the original mass is restored, although not the original shape. What stops the growth at the right size is less well understood than what starts it. Bile acids are one signal: when the liver is too small for the body, their level in the blood rises, and with it the drive to grow. Another is blood flow itself, since all the blood of the gut has to pass through whatever liver there is.

```cpp
#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

// A ring buffer of fixed capacity: one writer, one reader, no locks.
template <class T, std::size_t kCapacity>
class Ring {
 public:
  bool push(const T& value) {
    const auto head = head_.load(std::memory_order_relaxed);
    if (head - tail_.load(std::memory_order_acquire) == kCapacity) return false;
    slots_[head % kCapacity] = value;
    head_.store(head + 1, std::memory_order_release);
    return true;
  }
  bool pop(T& value) {
    const auto tail = tail_.load(std::memory_order_relaxed);
    if (tail == head_.load(std::memory_order_acquire)) return false;
    value = slots_[tail % kCapacity];
    tail_.store(tail + 1, std::memory_order_release);
    return true;
  }

 private:
  std::array<T, kCapacity> slots_;
  std::atomic<std::uint64_t> head_{0}, tail_{0};
};

int64_t binary_search(std::span<const int> sorted, int wanted) {
  int64_t low = 0, high = static_cast<int64_t>(sorted.size()) - 1;
  while (low <= high) {
    const int64_t middle = low + (high - low) / 2;
    if (sorted[middle] == wanted) return middle;
    if (sorted[middle] < wanted) low = middle + 1;
    else high = middle - 1;
  }
  return -1;
}
```

En la plaza del pueblo había un reloj que daba las horas con siete minutos de retraso desde antes de la guerra. Nadie lo arreglaba porque nadie quería ser el primero en llegar a tiempo. Los novios se citaban «a las ocho del reloj», y los forasteros, que miraban sus muñecas, esperaban de pie junto a la fuente creyéndose olvidados. Cuando por fin el ayuntamiento pagó a un relojero de la capital, la gente tardó un año entero en perdonarle la puntualidad.

{"id": "req-20931", "model": "small-chat", "messages": [{"role": "system", "content": "You answer briefly."}, {"role": "user", "content": "Convert 72 °F to Celsius."}], "temperature": 0.2, "max_tokens": 64, "stream": false, "metadata": {"team": "weather", "trace": true}}
{"id": "req-20931", "choices": [{"index": 0, "message": {"role": "assistant", "content": "72 °F is about 22.2 °C."}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 31, "completion_tokens": 12, "total_tokens": 43}}

2025-03-14T07:12:09.113Z INFO  api       listening on 0.0.0.0:8443 (tls=on, workers=8)
2025-03-14T07:12:11.870Z WARN  db.pool   connection 3 idle for 601 s, closing
2025-03-14T07:12:12.004Z ERROR payments  POST /v2/charges failed: 502 Bad Gateway (attempt 1 of 3, retry in 250 ms)
2025-03-14T07:12:12.266Z INFO  payments  POST /v2/charges 201 Created in 187 ms (attempt 2 of 3)

Théorème. Toute suite réelle bornée admet une sous-suite convergente. Démonstration : soit (u_n) une suite à valeurs dans [a, b]. L'un au moins des deux intervalles [a, (a+b)/2] et [(a+b)/2, b] contient u_n pour une infinité d'indices n ; appelons-le [a_1, b_1] et recommençons. On obtient des intervalles emboîtés dont la longueur (b - a)/2^k tend vers zéro ; ils ont donc un unique point commun c. En choisissant pour chaque k un indice n_k > n_{k-1} tel que u_{n_k} appartienne à [a_k, b_k], on a |u_{n_k} - c| <= (b - a)/2^k, d'où le résultat.

# Setting up the sensor gateway

The gateway collects readings from up to forty sensors and forwards them over MQTT.

## Requirements

- A board with at least 512 MB of memory and two USB ports
- Firmware 3.2 or later (`gatewayctl version` prints it)
- An account on the broker with permission to publish under `site/<name>/#`

## Steps

1. Flash the image: `sudo dd if=gateway-3.2.img of=/dev/sdX bs=4M status=progress conv=fsync`.
2. Boot, and open `http://gateway.local/setup`. The first password is printed on the label.
3. Enter the broker's address. If it uses a private certificate, paste it in the second field.
4. Pair the sensors one at a time. The green light blinks twice when a sensor has been accepted.

If pairing fails three times in a row, hold the reset button for ten seconds and try again from step 2.

| Model | Range | Interval | Battery |
|-------|-------|----------|---------|
| TH-1  | 40 m  | 60 s     | 2 years |
| TH-2  | 120 m | 300 s    | 5 years |
| CO-4  | 25 m  | 30 s     | mains   |

从前有一个渔夫，每天清晨都划着小船到湖心去。湖水很静，静得能听见鱼在水下转身的声音。有一天，他捞起一只旧铁盒，里面没有金子，只有一封被水泡得发软的信。信上写着：“如果你读到这封信，请替我去看看山那边的桃花。”渔夫不识字，就把信带给村里的老师。老师读完，沉默了很久，说：“这是五十年前写的。”第二年春天，渔夫翻过了那座山。

機械学習のモデルは、訓練データに現れた規則性を数値の形で覚える。しかし覚え方は一つではない。同じ正解率のモデルでも、見たことのない入力に対する振る舞いは大きく異なることがある。そのため評価には、訓練に使っていないデータを必ず用意する。また、データの収集時期が異なる場合には、時間の順序を守って分割することが望ましい。

Поезд стоял на станции уже второй час, и никто не знал почему. Проводница разносила чай в тонких стаканах и говорила, что на линии ремонт. Старик у окна не верил: он ездил этой дорогой сорок лет и знал, что ремонт бывает только летом. «Ждут кого-то», — сказал он и поправил очки. За окном медленно темнело, и фонарь над платформой качался от ветра.

function debounce(callback, delayMs) {
  let timer = null;
  return (...args) => {
    clearTimeout(timer);
    timer = setTimeout(() => callback(...args), delayMs);
  };
}

const search = debounce(async (query) => {
  const response = await fetch(`/api/search?q=${encodeURIComponent(query)}`);
  if (!response.ok) {
    throw new Error(`search failed with status ${response.status}`);
  }
  const { results } = await response.json();
  list.replaceChildren(...results.map((r) => renderRow(r.title, r.url)));
}, 200);

"You said Tuesday," said Ines.
"I said a Tuesday."
"There was one this week. I was there. I waited by the kiosk until the man gave me a newspaper out of pity."
Rui turned his cup so that the handle pointed at the window. "The thing is," he began, and then the waiter came, and the thing, whatever it was, had to wait until the bill was paid and the rain had stopped and they were both looking at the same puddle.
"The thing is that I didn't know whether you would come."
"So you stayed away to find out?"
"When you put it like that."

#!/usr/bin/env bash
set -euo pipefail
backup_dir="${1:?usage: backup.sh DIR}"
stamp="$(date +%Y-%m-%d)"
for database in orders users audit; do
  pg_dump --format=custom --file="$backup_dir/$database-$stamp.dump" "$database"
done
find "$backup_dir" -name '*.dump' -mtime +14 -print -delete

Recipe for lentil soup (serves four). Chop an onion, two carrots and a stick of celery and soften them in oil over a low flame for ten minutes. Add two cloves of garlic, a teaspoon of cumin and half a teaspoon of smoked paprika, and stir until you can smell them. Pour in 250 g of red lentils and a litre and a quarter of stock. Simmer for 25 minutes. Blend half of it and return it to the pot, season with lemon juice and salt, and serve with bread. It keeps for three days and freezes well.

The committee met on 9 November with eleven members present. Ms Okafor reported that the bridge had been inspected and that two of the six bearings on the eastern side need replacing within eighteen months; the estimate is 140,000, of which the county will bear 60 per cent. Mr Lindqvist asked whether the work could be combined with the resurfacing planned for the following spring. It was agreed to request a joint tender. The proposal to widen the footpath was postponed, five votes to four with two abstentions.

Let f(x) = x^3 - 6x^2 + 9x + 1. Then f'(x) = 3x^2 - 12x + 9 = 3(x - 1)(x - 3), so the critical points are x = 1 and x = 3. Since f''(x) = 6x - 12, we have f''(1) = -6 < 0 and f''(3) = 6 > 0: a local maximum f(1) = 5 and a local minimum f(3) = 1. On the interval [0, 4] the endpoints give f(0) = 1 and f(4) = 5, so the greatest value is 5, taken at x = 1 and x = 4, and the least is 1, taken at x = 0 and x = 3.

User: Write a haiku about a night train, and then explain it.
Assistant: Windows full of dark,
one reading lamp still awake:
snow leans on the rails.
The first line looks out and sees nothing; the second finds the only light inside. The last turns outward again, to the weather that has been there all along, resting where the train is about to pass.
User: Can you make it rhyme?
Assistant: A haiku does not need to, and rhyme tends to close what the form leaves open. But if you like: "Windows full of dark, / a lamp, a small and yellow spark, / snow asleep in the park."

impl Iterator for Fibonacci {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        let current = self.a;
        let sum = self.a.checked_add(self.b)?;
        self.a = self.b;
        self.b = sum;
        Some(current)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_with_zero_and_one() {
        let first: Vec<u64> = Fibonacci { a: 0, b: 1 }.take(7).collect();
        assert_eq!(first, [0, 1, 1, 2, 3, 5, 8]);
    }
}

A strike at the port in the spring of 1911 began over a matter of eleven minutes. That was the time, by the union's measurement, between the whistle and the opening of the gates, and it was not paid. The company answered that men who had not yet passed the gate were not yet at work; the men answered that they were not at home either. Within a week nine hundred were out. The newspapers, which at first treated it as a comedy, changed their tone when fruit began to rot in the holds, and the mayor, who owned a share in two of the ships, discovered that he had always been a friend of arbitration.

Subject: Re: Thursday's release
Hi all,
Two things before we ship. First, the migration takes a lock on the invoices table for about forty seconds on the staging copy; production has six times the rows, so please let's run it in the maintenance window and not, as last time, at lunch. Second, the new export still writes dates as 03/04/2025, which half of our customers will read as April and the other half as March. ISO 8601, please. I have opened tickets for both (#4417, #4421).
Thanks, and sorry for being the person who says this every time,
Dana

Q: Which is heavier, a litre of water at 4 °C or a litre of water at 80 °C?
A: The cold one. Water is densest near 4 °C, about 1000 grams a litre; at 80 °C a litre has about 972 grams.
Q: Why does ice float, then?
A: Because below 4 °C water begins to expand, and on freezing its molecules lock into an open lattice that takes about nine per cent more room.

Il treno delle sette e dodici non aveva mai più di tre passeggeri, e tutti e tre scendevano a stazioni diverse. Si conoscevano di vista da anni senza essersi mai parlati, finché una mattina di nebbia il treno si fermò in mezzo alla campagna. Dopo venti minuti la signora con il cappello verde aprì una scatola di biscotti e la passò in giro senza dire niente.

<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>Opening hours</title>
<style>table { border-collapse: collapse } td { padding: 0.25rem 1rem; border-bottom: 1px solid #ccc }</style></head>
<body><h1>Opening hours</h1>
<table><tr><td>Monday to Thursday</td><td>9:00 to 17:30</td></tr><tr><td>Friday</td><td>9:00 to 15:00</td></tr></table>
</body></html>

On the third day the survey reached the upper valley. There the path crosses the stream eleven times in two miles, and the guide, a patient woman named Hesper who had carried the theodolite since dawn, remarked that the stream ought to be charged for the bridges. We measured the fall at 212 feet, the width at the narrowest point at nine, and found, as others had written, that the eastern bank is limestone and the western slate, so that one may stand with a foot on either and hear two different waters.

# Python, as asked for in a chat

User: I have a CSV of expenses with the columns date, category and amount. Write me a function that returns the total a month and category, without pandas.
Assistant: Here is one that uses only the standard library:

```python
import csv
from collections import Counter
from datetime import date
from pathlib import Path


def totals_by_month(path: Path) -> dict[tuple[int, int, str], float]:
    """(year, month, category) -> sum of amounts; rows with a bad amount are reported, not dropped."""
    totals: Counter = Counter()
    with path.open(newline="", encoding="utf-8") as file:
        for number, row in enumerate(csv.DictReader(file), start=2):
            try:
                day = date.fromisoformat(row["date"].strip())
                amount = float(row["amount"].replace(",", "."))
            except (KeyError, ValueError) as error:
                raise ValueError(f"{path}:{number}: {error}") from error
            totals[day.year, day.month, row["category"].strip().lower()] += amount
    return dict(totals)
```

Two decisions you may want to change: a comma is read as a decimal point, and a broken row stops the whole thing with its line number, because a silently missing expense is worse than an error.
User: Make it skip broken rows but tell me how many.
Assistant: Replace the `raise` by `skipped += 1; continue`, start with `skipped = 0`, and return `dict(totals), skipped`. The caller then decides whether three bad rows out of ten thousand matter.

date,category,amount
2024-11-02,groceries,48.20
2024-11-03,transport,3.10
2024-11-03,groceries,12.75
2024-11-09,rent,890.00
2024-11-17,books,23.40

package queue

import (
	"context"
	"errors"
	"sync"
	"time"
)

var ErrClosed = errors.New("queue: closed")

type Item struct {
	Key     string
	Payload []byte
	NotBefore time.Time
}

// Take blocks until an item is due, the queue is closed, or ctx ends.
func (q *Queue) Take(ctx context.Context) (Item, error) {
	for {
		q.mu.Lock()
		if q.closed {
			q.mu.Unlock()
			return Item{}, ErrClosed
		}
		if len(q.items) > 0 && !q.items[0].NotBefore.After(time.Now()) {
			item := q.items[0]
			q.items = q.items[1:]
			q.mu.Unlock()
			return item, nil
		}
		wait := q.untilNext()
		q.mu.Unlock()
		select {
		case <-ctx.Done():
			return Item{}, ctx.Err()
		case <-q.changed:
		case <-time.After(wait):
		}
	}
}

O barco atracou de madrugada, quando só os gatos e o guarda do cais estavam acordados. Trazia sal, duas bicicletas embrulhadas em jornal e uma carta que ninguém sabia a quem entregar, porque a chuva tinha apagado metade do endereço. O guarda leu o que restava, pensou um pouco e pendurou a carta na porta do café, onde toda a gente acabaria por passar.

أغلق الخباز دكانه قبل الغروب على غير عادته، وعلق على الباب ورقة كتب عليها: «نعود غدا إن شاء الله». وقف الجيران يتساءلون، فقال أصغرهم إنه رأى عربة محملة بالحقائب تتجه نحو المحطة. في الصباح التالي كانت رائحة الخبز تملأ الشارع كأن شيئا لم يكن.

रेलगाड़ी समय पर थी, लेकिन यात्री देर से आए। स्टेशन मास्टर ने घड़ी देखी, फिर आसमान, और सीटी बजाने से पहले एक मिनट और रुक गए। उस एक मिनट में एक बूढ़ी औरत अपने पोते का हाथ पकड़े प्लेटफ़ॉर्म पर पहुँच गई।

골목 끝의 작은 서점은 비 오는 날에만 늦게까지 문을 열었다. 주인은 손님이 우산을 접는 소리를 들으면 찻물을 올렸고, 책을 사지 않는 사람에게도 같은 잔을 내주었다. 어느 날 한 소년이 물었다. “왜 비 오는 날만요?” 주인은 웃으며 대답했다. “맑은 날에는 다들 바쁘니까.”

Pociąg do Gdyni odjechał punktualnie, co zdziwiło wszystkich poza maszynistą. Na peronie został tylko człowiek z parasolem i pies, który najwyraźniej do niego nie należał. Yağmur dinince ikisi de aynı yöne yürüdüler; kahvenin önünde yolları ayrıldı.

diff --git a/src/cache.c b/src/cache.c
--- a/src/cache.c
+++ b/src/cache.c
@@ -41,11 +41,16 @@ static struct entry *lookup(struct cache *c, const char *key, size_t len)
 int cache_put(struct cache *c, const char *key, size_t len, void *value)
 {
 	struct entry *e = lookup(c, key, len);
-	if (!e) {
-		e = malloc(sizeof(*e));
+	if (e) {
+		c->release(e->value);
+	} else {
+		if (c->used == c->limit)
+			evict_oldest(c);
+		e = calloc(1, sizeof(*e) + len + 1);
+		if (!e)
+			return -ENOMEM;
 		memcpy(e->key, key, len);
 	}
 	e->value = value;
 	return 0;
 }

<|tool|>{"name": "find_trains", "arguments": {"from": "Utrecht", "to": "Groningen", "date": "2024-06-11", "after": "14:00"}}
<|result|>{"trains": [{"departs": "14:18", "arrives": "16:10", "changes": 0, "platform": "11"}, {"departs": "14:48", "arrives": "16:43", "changes": 1, "platform": "9"}]}
Assistant: The 14:18 from platform 11 is direct and arrives at 16:10. The next one, at 14:48, needs a change and takes three minutes longer.

apiVersion: apps/v1
kind: Deployment
metadata:
  name: thumbnailer
  labels: {app: thumbnailer, tier: background}
spec:
  replicas: 3
  selector:
    matchLabels: {app: thumbnailer}
  template:
    metadata:
      labels: {app: thumbnailer}
    spec:
      containers:
        - name: worker
          image: registry.example.org/thumbnailer:1.8.2
          args: ["--queue", "images", "--parallel", "4"]
          resources:
            requests: {cpu: 500m, memory: 256Mi}
            limits: {memory: 512Mi}

public final class Interval implements Comparable<Interval> {
    private final long start;
    private final long end;

    public Interval(long start, long end) {
        if (end < start) {
            throw new IllegalArgumentException("end " + end + " lies before start " + start);
        }
        this.start = start;
        this.end = end;
    }

    public boolean overlaps(Interval other) {
        return start < other.end && other.start < end;
    }

    @Override
    public int compareTo(Interval other) {
        return start != other.start ? Long.compare(start, other.start) : Long.compare(end, other.end);
    }
}

Abstract. We ask whether the order in which a colony of harvester ants visits its food sources can be predicted from the order of the day before. Forty colonies were observed for sixteen days each. A model that knows only yesterday's order predicts the first source of the day in 61 % of cases (chance: 20 %), but adding the two days before that improves it by less than one point. Removing a source for a single day erases the memory of its place in the sequence, not of the others'. We conclude that what persists is a set of preferences, renewed daily, and not a route.

ACT TWO. A kitchen, late. MIRIAM is sorting letters into two piles. Enter her brother with a lamp.
ELIAS: You kept the gas bills.
MIRIAM: I kept everything. The gas bills are the only ones that tell the truth.
ELIAS: (sitting) And that pile?
MIRIAM: Those are from you.
ELIAS: It's the smaller one.
MIRIAM: You always wrote on both sides.

The parties agree as follows. 4.1 The Supplier shall deliver the Goods to the Place of Delivery within thirty (30) days of the date on which the Order is accepted. 4.2 If delivery is delayed for reasons outside the Supplier's reasonable control, the period in clause 4.1 is extended by the length of the delay, provided that notice is given in writing without undue delay. 4.3 Risk passes on delivery; title passes when the price has been paid in full.

NAME

tally - count lines, words and fields of delimited files

SYNOPSIS

    tally [-d DELIMITER] [-f FIELD[,FIELD...]] [--header] [--unique] [FILE...]

DESCRIPTION

tally reads each FILE in order, or standard input where there is none or where FILE is a single dash, and
writes one line for every distinct value of the chosen fields, preceded by the number of records in which
it came. Records end with a newline; a last record without one is counted like the others. Fields are
separated by DELIMITER, which may be longer than one character but is never a regular expression. An empty
field is a value like any other.

The order of the output is that of first appearance, so that the result of a run over a sorted file is
itself sorted. With --unique nothing is counted twice within one file, which is what most people want when
each file is a day and each record a visit.

OPTIONS

-d DELIMITER
    What separates fields. The default is a tab. Give $'\x1f' for the unit separator in shells that know
    this notation.

-f FIELD[,FIELD...]
    Which fields make up the value, counted from 1. Without it the whole record is the value. A field past
    the end of a record is taken as empty; see --strict to have such records refused instead.

--header
    The first record of every FILE names the fields. They may then be given to -f by name. A name that is
    not in the header of some file is an error for that file alone, reported on standard error, and tally
    goes on with the next one; its exit status is then 1.

--strict
    A record with fewer fields than the largest one asked for ends the run with status 2.

EXIT STATUS

0 if every file was read to its end, 1 if some could not be opened or lacked a named field, 2 for a usage
error or a record refused by --strict.

NOTES

Values are compared byte by byte. Two spellings of the same letter, composed and decomposed, are two
values. tally keeps every distinct value in memory; for more of them than fit, sort the file first and use
uniq -c, which needs to remember only one.

SEE ALSO

cut(1), join(1), sort(1), uniq(1)


Licence of the Harbour typefaces, second edition

What this licence is for. These typefaces were drawn to be used. Whoever has a copy may set books, signs and screens with
it, take it apart to see how it was made, and make another out of it; what is made out of it must be as free for the next
person as it was for the last. The only things kept back are the names, so that nobody is taken for the author of what
somebody else has changed.

1. Words. In this document "the Typefaces" are the files that the Authors have published under it, together with the scripts
that build them and the text that describes them. "The Original" is the Typefaces as the Authors published them. "A Variant"
is whatever results when something is added to the Original, removed from it or replaced in it, however little, or when it is
converted to another format. "You" are the person or the body that makes use of a right given here.

2. What You may do. Subject to clauses 3 and 4, You may, without paying and without asking:

(a) use the Typefaces for any purpose, commercial purposes included, and on as many devices as You wish;

(b) put them, whole or in part, into documents, whether printed or not, to which this licence does not then extend;

(c) copy them and hand the copies on, together with other software or by themselves, provided that no charge is made for
the Typefaces as such beyond what the copying costs; and

(d) make Variants, and do with these whatever (a) to (c) allow to be done with the Original.

3. What You must do. Every copy that is handed on shall carry this licence and the notice of the Authors' rights, either in
a file of their own or in those fields of a font file that are meant for them, such that a person without special tools can
read them. A Variant shall be published under this licence and no other, and shall not bear, as the name by which users
choose it, any name that the Authors have reserved, unless the Author in question has agreed in writing.

4. When these rights end. They end for anyone who breaks clause 3 and does not put matters right within thirty days of
learning of it. They do not on that account end for those who had their copies from that person and keep to the clause
themselves.

5. No promise. The Typefaces are handed over as they are. The Authors promise nothing as to their quality, their fitness for
what You have in mind, or the absence of claims by third parties, and to the extent that the law allows it they answer for no
damage, of whatever kind and on whatever ground, that comes of using them or of not being able to. Where the law does not
allow this, they answer for no more than it demands.

6. Collections. If the Typefaces are delivered together with works that were not derived from them, on one medium or in one
archive, those works do not come under this licence by reason of the company they keep.


"""Reading and writing of packed record files.

A packed file is a header of sixteen bytes followed by records of one length. The header has a magic number,
the version of the format, the length of a record and the number of records, all little-endian. Nothing is
compressed: the point of the format is that record n can be read without reading the n - 1 before it.
"""

import io
import os
import struct

__all__ = ["PackedError", "PackedReader", "PackedWriter", "open_packed"]

MAGIC = 0x5041434B
VERSION = 3
HEADER = struct.Struct("<IIII")


class PackedError(Exception):
    """Base of all errors of this module; args[0] says which file."""


class HeaderError(PackedError):
    """The file does not begin with a header that this module can read."""


class PackedReader:
    """Random access to the records of an open packed file.

    The file object must be seekable and opened in binary mode. It is not closed when the reader is; use
    open_packed() for a reader that owns its file. Instances may be iterated over, indexed with integers and
    slices, and have a length.
    """

    def __init__(self, fileobj, *, name=None):
        self.fileobj = fileobj
        self.name = name if name is not None else getattr(fileobj, "name", "<stream>")
        self._position = 0
        self._read_header()

    def _read_header(self):
        self.fileobj.seek(0)
        buf = self.fileobj.read(HEADER.size)
        if len(buf) != HEADER.size:
            raise HeaderError(f"{self.name}: truncated header: {len(buf)} bytes, wanted {HEADER.size}")
        magic, version, self.record_size, self.count = HEADER.unpack(buf)
        if magic != MAGIC:
            raise HeaderError(f"{self.name}: bad magic number {magic:#010x}")
        if version > VERSION:
            raise HeaderError(f"{self.name}: format version {version} is newer than {VERSION}")
        if self.record_size == 0 and self.count > 0:
            raise HeaderError(f"{self.name}: records of no length")

    def __len__(self):
        return self.count

    def __iter__(self):
        for index in range(self.count):
            yield self[index]

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.count))]
        if index < 0:
            index += self.count
        if not 0 <= index < self.count:
            raise IndexError(f"record {index} of {self.count}")
        self.fileobj.seek(HEADER.size + index * self.record_size)
        record = self.fileobj.read(self.record_size)
        if len(record) < self.record_size:
            raise PackedError(f"{self.name}: record {index} is cut off")
        return record

    def seek(self, offset, whence=io.SEEK_SET):
        """Move to a record. As for files, but counted in records; returns the new position."""
        if whence == io.SEEK_SET:
            self._position = offset
        elif whence == io.SEEK_CUR:
            self._position += offset
        elif whence == io.SEEK_END:
            self._position = self.count + offset
        else:
            raise ValueError(f"invalid whence ({whence}, should be 0, 1 or 2)")
        self._position = max(0, min(self._position, self.count))
        return self._position

    def read(self, n=-1):
        """Read up to n records from the current position on; all of them where n is negative."""
        if n < 0:
            n = self.count - self._position
        records = self[self._position:self._position + n]
        self._position += len(records)
        return records


class PackedWriter:
    """Appends records and corrects the header when it is closed."""

    def __init__(self, fileobj, record_size):
        if record_size <= 0:
            raise ValueError("record_size must be positive")
        self.fileobj = fileobj
        self.record_size = record_size
        self.count = 0
        self.fileobj.write(HEADER.pack(MAGIC, VERSION, record_size, 0))

    def write(self, record):
        if len(record) != self.record_size:
            raise ValueError(f"record of {len(record)} bytes, wanted {self.record_size}")
        self.fileobj.write(record)
        self.count += 1

    def close(self):
        self.fileobj.seek(0)
        self.fileobj.write(HEADER.pack(MAGIC, VERSION, self.record_size, self.count))
        self.fileobj.flush()
        os.fsync(self.fileobj.fileno())

    def __enter__(self):
        return self

    def __exit__(self, exc_type, exc_value, traceback):
        if exc_type is None:
            self.close()


def open_packed(name, mode="r", record_size=None):
    """Open a packed file by name and return a reader or a writer for it."""
    if mode == "r":
        return PackedReader(open(name, "rb"), name=name)
    if mode == "w":
        if record_size is None:
            raise TypeError("record_size is needed to write")
        return PackedWriter(open(name, "wb"), record_size)
    raise ValueError(f"mode must be 'r' or 'w', not {mode!r}")


Building a project
******************

A project is described by *targets* and by the *properties* that hold for them. A target is something that a
build produces: an executable, a library, or a file that a command writes. Properties say how: where headers
are found, which options the compiler is given, what a consumer of the target must link to in turn.

Usage requirements
==================

What a target needs in order to be built, and what others need in order to use it, are two different things.
The keywords ``PRIVATE``, ``INTERFACE`` and ``PUBLIC`` keep them apart:

``PRIVATE``
  Needed to build the target, and of no concern to those who use it.

``INTERFACE``
  Needed by users, but not by the target itself. A library of headers alone has nothing else.

``PUBLIC``
  Both of the above.

.. code-block:: cmake

  add_library(wire STATIC src/encode.cpp src/decode.cpp)
  target_include_directories(wire
    PUBLIC
      $<BUILD_INTERFACE:${CMAKE_CURRENT_SOURCE_DIR}/include>
      $<INSTALL_INTERFACE:include>
    PRIVATE
      src
  )
  target_compile_features(wire PUBLIC cxx_std_20)
  target_link_libraries(wire PUBLIC buffer PRIVATE checksum)

  add_executable(wiredump tools/wiredump.cpp)
  target_link_libraries(wiredump PRIVATE wire)

In the example above, ``wiredump`` is compiled with the include directory of ``wire`` and linked to
``buffer``, because both are ``PUBLIC``; it does not see ``src``, and it is linked to ``checksum`` only because
a static library cannot link by itself.

.. note::

  Order matters where the linker is old. Every dependency is repeated once for each path that leads to it,
  and groups of libraries that need each other are repeated as a whole.

Finding what is installed
=========================

``find_package(Name [version] [REQUIRED])`` looks first for a *config file* that the package itself has
installed, then for a *module* that somebody else has written. If neither is found and the call says
``REQUIRED``, configuring ends with an error that lists the directories where it was looked for.

#ifndef GRID_SPARSE_VECTOR_H
#define GRID_SPARSE_VECTOR_H

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

namespace grid {

/**
 *  @brief  A vector of which nearly all elements are equal to one default value.
 *
 *  Elements that differ are kept with their index, in ascending order. Reading an element takes
 *  logarithmic time in their number; writing one may take linear time. Iterators visit the stored
 *  elements only, and are invalidated by every call that is not const.
 *
 *  @tparam _Tp     The type of the elements; must be equality comparable.
 *  @tparam _Alloc  The allocator of the stored pairs.
 */
template<typename _Tp, typename _Alloc = std::allocator<std::pair<std::size_t, _Tp>>>
  class sparse_vector
  {
  public:
    typedef _Tp                                         value_type;
    typedef std::size_t                                 size_type;
    typedef std::pair<size_type, _Tp>                   entry_type;
    typedef std::vector<entry_type, _Alloc>             storage_type;
    typedef typename storage_type::const_iterator       const_iterator;

    explicit
    sparse_vector(size_type __n = 0, const _Tp& __default = _Tp(),
                  const _Alloc& __a = _Alloc())
    : _M_size(__n), _M_default(__default), _M_entries(__a)
    { }

    template<typename _InputIterator,
             typename = std::enable_if_t<!std::is_integral_v<_InputIterator>>>
      sparse_vector(_InputIterator __first, _InputIterator __last)
      : _M_size(0), _M_default()
      {
        for (; __first != __last; ++__first)
          push_back(*__first);
      }

    //@{
    /// The number of elements, and of those that differ from the default.
    size_type size() const noexcept { return _M_size; }
    size_type stored() const noexcept { return _M_entries.size(); }
    bool empty() const noexcept { return _M_size == 0; }
    //@}

    const _Tp&
    operator[](size_type __n) const
    {
      const_iterator __it = _M_find(__n);
      return __it != _M_entries.end() && __it->first == __n
             ? __it->second : _M_default;
    }

    void
    set(size_type __n, const _Tp& __value)
    {
      auto __it = std::lower_bound(_M_entries.begin(), _M_entries.end(), __n,
                                   [](const entry_type& __e, size_type __i)
                                   { return __e.first < __i; });
      const bool __found = __it != _M_entries.end() && __it->first == __n;
      if (__value == _M_default)
        {
          if (__found)
            _M_entries.erase(__it);
        }
      else if (__found)
        __it->second = __value;
      else
        _M_entries.emplace(__it, __n, __value);
      if (__n >= _M_size)
        _M_size = __n + 1;
    }

    void
    push_back(const _Tp& __value)
    {
      if (!(__value == _M_default))
        _M_entries.emplace_back(_M_size, __value);
      ++_M_size;
    }

    const_iterator begin() const noexcept { return _M_entries.begin(); }
    const_iterator end() const noexcept { return _M_entries.end(); }

    friend bool
    operator==(const sparse_vector& __x, const sparse_vector& __y)
    {
      return __x._M_size == __y._M_size
             && __x._M_default == __y._M_default
             && __x._M_entries == __y._M_entries;
    }

  private:
    const_iterator
    _M_find(size_type __n) const
    {
      return std::lower_bound(_M_entries.begin(), _M_entries.end(), __n,
                              [](const entry_type& __e, size_type __i)
                              { return __e.first < __i; });
    }

    size_type     _M_size;
    _Tp           _M_default;
    storage_type  _M_entries;
  };

} // namespace grid

#endif // GRID_SPARSE_VECTOR_H


Salt marshes form where rivers bring mud to a sheltered coast and the tide is too gentle to carry it away again.
Their lower edge is bare at low water and under a metre of sea at high water; their upper edge is wetted a few
times in a year, by spring tides with a wind behind them. Between the two lies a staircase of plants, each step
fixed less by what a species likes than by what it can bear. Glasswort stands lowest, because nothing else
survives being covered twice a day; where it has slowed the water and the mud has risen by a hand's breadth,
cordgrass and then sea aster take its place, and shade it out.

For a long time the marshes of the eastern counties were thought of as land that had not been finished. Between
1630 and 1850 something like four fifths of them were walled off, drained and ploughed. The gain was real and
short-lived: peat shrinks when it dries, so that the new fields sank below the sea that had been shut out, and the
walls had to be raised by every generation. In the winter of 1953 a surge went over them in one night. What came
after is usually told as a story of engineering, of concrete and pumps; but the engineers' own reports noted, and
few readers then remarked, that walls with a strip of living marsh before them had stood, while those without had
mostly gone.

The reason is plain once it is measured. A wave that runs over eighty metres of marsh loses about half of its
height, and with it three quarters of its energy, before it reaches the wall. The wall behind can be lower, and
cheaper, by far more than the field given up is worth. Since 1991 some thirty breaches have been made on purpose.
The first winter after a breach looks like a disaster, and the telephone of whoever signed for it does not stop
ringing. By the third summer there is glasswort; by the tenth, a marsh that a visitor cannot tell from an old one,
though a botanist can, by the creeks, which are still too straight.


Q: Mr. Alvarez sells lemonade in two sizes. A small cup holds 8 ounces and costs $1.50; a large one holds 14 ounces
and costs $2.25. On Saturday he sold 36 small cups and some large ones, and used 6 gallons of lemonade in all. How
much money did he take? (A gallon is 128 ounces.)
A: Six gallons are 6*128 = 768 ounces.
The small cups held 36*8 = 288 ounces.
So the large cups held 768-288 = 480 ounces, but 480/14 is not a whole number: he must have spilled some. If he
sold 34 large cups, they held 34*14 = 476 ounces and 4 ounces were lost.
The small cups brought 36*1.50 = $54 and the large ones 34*2.25 = $76.50.
Together that is 54+76.50 = $130.50.

Q: A train leaves Arden at 9:40 and reaches Brook, 84 miles away, at 11:05. After a stop of 10 minutes it goes on to
Carrow at the same speed and arrives at 12:00. How far is it from Brook to Carrow, to the nearest mile?
A: From 9:40 to 11:05 are 85 minutes, so the speed is 84/85 of a mile a minute.
It leaves Brook at 11:15 and arrives at 12:00, which is 45 minutes later.
The distance is 45*84/85 = 44.47, so it is 44 miles.

Q: Priya reads 22 pages on each weekday and twice as many on each day of the weekend. Her book has 440 pages and she
begins on a Monday. On which day does she finish it?
A: In a week she reads 5*22 = 110 pages on weekdays and 2*44 = 88 on the weekend, 198 in all.
After two weeks she has read 396 pages, and 440-396 = 44 are left.
On the third Monday she reads 22 of them, and on the third Tuesday the other 22. She finishes it on a Tuesday.


def longest_run(values: list[int]) -> tuple[int, int]:
    """Return the start and the length of the longest run of equal values.

    Of several runs of the same length the first counts. An empty list has no run.

    >>> longest_run([1, 1, 2, 2, 2, 3])
    (2, 3)
    >>> longest_run([4, 5, 6])
    (0, 1)
    >>> longest_run([])
    (0, 0)
    """
    best_start = best_length = 0
    start = 0
    for i in range(1, len(values) + 1):
        if i == len(values) or values[i] != values[start]:
            if i - start > best_length:
                best_start, best_length = start, i - start
            start = i
    return best_start, best_length


def merge_intervals(intervals):
    """Merge overlapping intervals. Input: a list of (start, end) pairs with start <= end, in any order.

    >>> merge_intervals([(8, 10), (1, 3), (2, 6)])
    [(1, 6), (8, 10)]
    """
    merged = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


User: Our nightly job has begun to fail with "could not serialize access due to concurrent update". Nothing about the
job has changed. What does it mean, and what should I do?
Assistant: It means that the job runs its transaction at the isolation level REPEATABLE READ or SERIALIZABLE, and that
another transaction has changed a row that yours wanted to change, after yours had taken its snapshot. The database
cannot give both of you a consistent view, so it ends yours.

Three things are worth checking, in this order:

1. **What else runs at that time now?** The job has not changed, but its neighbours may have. Look for other
   transactions on the same tables in the minutes before the error:
   `SELECT pid, usename, xact_start, query FROM pg_stat_activity WHERE state <> 'idle' ORDER BY xact_start;`
2. **Does the job need that level at all?** If each of its statements is right on its own, READ COMMITTED is enough,
   and this error cannot occur there. If it reads a total and then writes something that depends on it, it does need it.
3. **Is it retried?** At these levels the error is part of the contract: the application is expected to roll back and
   run the whole transaction again. Most libraries have a wrapper for it. Retry on SQLSTATE 40001 and 40P01 alone, with
   a short random pause, and give up after five attempts or so.

If you tell me which tables the job writes to, and how long it usually takes, I can suggest how to split it so that it
holds its snapshot for seconds and not for an hour.
User: It updates `account_balance` for all accounts, in one statement, about 40 minutes.
Assistant: Then almost any payment made in those 40 minutes collides with it. Split it by ranges of the key, a few
thousand accounts each, and commit after every range. Each part takes a second or two, so collisions become rare, and
the one that collides costs only its own part. Two caveats: the job is no longer atomic, so write down the last range that
was done and begin there after a crash; and if the balances must all be as of midnight, compute them from a fixed
cut-off time and not from now().


\section{Convergence}
Let $(a_n)$ be a sequence of positive numbers with $\sum_n a_n = \infty$ and $\sum_n a_n^2 < \infty$, for instance
$a_n = 1/n$. We show that the iteration $x_{n+1} = x_n - a_n (g(x_n) + \varepsilon_n)$ converges to the only zero
$x^\ast$ of $g$, almost surely, whenever $g$ is increasing with $|g(x)| \le C(1 + |x|)$ and the errors have
$\mathbb{E}[\varepsilon_n \mid \mathcal{F}_n] = 0$ and $\mathbb{E}[\varepsilon_n^2 \mid \mathcal{F}_n] \le \sigma^2$.

\begin{proof}
Put $d_n = (x_n - x^\ast)^2$. Expanding the square,
\begin{equation}
  \mathbb{E}[d_{n+1} \mid \mathcal{F}_n] \le d_n (1 + 2 C^2 a_n^2) + a_n^2 (\sigma^2 + 2 C^2 (1 + |x^\ast|)^2)
  - 2 a_n (x_n - x^\ast)\, g(x_n).
\end{equation}
The last term is never positive. By the theorem of Robbins and Siegmund, $d_n$ converges and
$\sum_n a_n (x_n - x^\ast)\, g(x_n) < \infty$. As the $a_n$ sum to infinity, $(x_n - x^\ast)\, g(x_n)$ comes arbitrarily
close to $0$; since $g$ vanishes at $x^\ast$ alone, so does $d_n$ along a subsequence, and hence altogether.
\end{proof}


CREATE TABLE shipment (
    id            BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    order_id      BIGINT NOT NULL REFERENCES customer_order (id) ON DELETE RESTRICT,
    carrier       TEXT NOT NULL CHECK (carrier IN ('rail', 'road', 'sea')),
    dispatched_at TIMESTAMPTZ,
    delivered_at  TIMESTAMPTZ,
    weight_kg     NUMERIC(8, 2) NOT NULL CHECK (weight_kg > 0),
    CONSTRAINT delivered_after_dispatched CHECK (delivered_at IS NULL OR delivered_at >= dispatched_at)
);
CREATE INDEX shipment_open ON shipment (carrier, dispatched_at) WHERE delivered_at IS NULL;


interface RetryOptions {
  attempts: number;
  firstDelayMs: number;
  isTransient(error: unknown): boolean;
  signal?: AbortSignal;
}

export async function withRetry<T>(task: (attempt: number) => Promise<T>, options: RetryOptions): Promise<T> {
  let delay = options.firstDelayMs;
  for (let attempt = 1; ; attempt++) {
    options.signal?.throwIfAborted();
    try {
      return await task(attempt);
    } catch (error) {
      if (attempt >= options.attempts || !options.isTransient(error)) throw error;
      await new Promise((resolve) => setTimeout(resolve, delay * (0.5 + Math.random())));
      delay = Math.min(delay * 2, 30_000);
    }
  }
}


The council's decision to close the Mill Street crossing was overturned on Thursday evening, after nearly three hours of
argument and by a single vote. Residents had collected 2,140 signatures in eleven days. "Nobody asked the people who
walk there," said Dilys Morgan, who has kept the shop on the corner since 1988 and who read out, to applause, the names
of customers who had told her that they would simply stop coming. The railway's own engineer, called at short notice,
conceded under questioning that the accident figures in the report were those of a different crossing with the same
name. A new study is to be ready by the spring. Until then the gates will be staffed, as they were until last year,
from six in the morning until ten at night.


static int
parse_port(const char *text, uint16_t *port)
{
	char *end;
	unsigned long value;

	errno = 0;
	value = strtoul(text, &end, 10);
	if (end == text || *end != '\0')
		return -EINVAL;
	if (errno == ERANGE || value == 0 || value > 65535)
		return -ERANGE;
	*port = (uint16_t)value;
	return 0;
}
)text";

}  // namespace

std::string_view kv_calibration_text() { return kText; }

}  // namespace foretoken
