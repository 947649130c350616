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
)text";

}  // namespace

std::string_view kv_calibration_text() { return kText; }

}  // namespace foretoken
