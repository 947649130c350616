"""Mixed text for the oracles, the same on every run: what people send to a model, and what nobody does."""

import random
import unicodedata

PROSE = """The committee met on Tuesday, and it wasn't until half past nine that anyone mentioned the bridge. We'd heard
(from whom, I can't say) that the river had risen; "it'll go down," they'd said, "it always does." I'M NOT SURE.
Über den Dächern lag noch Schnee, und die Straße glänzte. L'été dernier, où étions-nous déjà? El niño comió piñas.
Příliš žluťoučký kůň úpěl ďábelské ódy. Zażółć gęślą jaźń. Быстрая лиса перепрыгнула через ленивую собаку.
Η γρήγορη αλεπού πηδά πάνω από τον τεμπέλη σκύλο. İstanbul'da ılık bir akşam. Tiếng Việt có nhiều dấu."""

CODE = r"""def merge(left, right):
    # stable: equal keys keep their order
    out = []
    while left and right:
        out.append(left.pop(0) if left[0] <= right[0] else right.pop(0))
    return out + left + right
#include <vector>
template <class T, std::size_t N = 16>
constexpr auto sum(const std::array<T, N>& a) noexcept -> T { return std::accumulate(a.begin(), a.end(), T{}); }
	for (int i = 0; i < 0x7fff'ffff; ++i) { p->next[i] *= -1.5e-10f; }   // tabs	and  spaces
SELECT u.id, COUNT(*) FROM users u LEFT JOIN logs l ON l.uid = u.id WHERE u.name LIKE '%o''brien%' GROUP BY 1;
{"messages": [{"role": "user", "content": "caf\u00e9 \\ \"quoted\""}], "temperature": 0.8, "n": null}
<div class="row" style="margin:0 auto;">&nbsp;&lt;b&gt;</div><!-- done -->
fn main() -> Result<(), Box<dyn Error>> { let x: &'static str = r#"raw"#; println!("{x:?}"); Ok(()) }
$ curl -sS https://example.org/a/b?c=d&e=%20f | grep -E '^[a-z]+$' || exit 1"""

EAST_ASIAN = "天地玄黄宇宙洪荒日月盈昃辰宿列张。寒来暑往，秋收冬藏！吾輩は猫である。名前はまだ無い。ｶﾀｶﾅ全角ＡＢＣ１２３" \
             "키스의 고유조건은 입술끼리 만나야 하고 특별한 기술은 필요치 않다 𠮷野家𩸽《》「」・ー〜　々〇"
RIGHT_TO_LEFT = "السلام عليكم ورحمة الله، كيف حالك؟ ١٢٣٤٥ مُحَمَّد שָׁלוֹם עולם ۱۲۳ فارسی‌زبان \u202bمرحبا\u202c"
INDIC = "नमस्ते दुनिया १२३ क्षत्रिय বাংলা ভাষা தமிழ் మాట ಕನ್ನಡ മലയാളം සිංහල ภาษาไทย ๑๒๓ ລາວ မြန်မာ ខ្មែរ བོད་"
EMOJI = ["👩‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪🇯🇵", "👍🏽", "🧑🏿‍🚀", "1️⃣", "❤️", "☠", "🫠", "😀😃😄", "\u200d", "\ufe0f", "✂︎", "🏴󠁧󠁢󠁥󠁮󠁧󠁿"]
WHITE = [" ", "  ", "   ", "\t", "\n", "\r\n", "\n\n", "\r", "\v", "\f", "\x85", "\xa0", "\u1680", "\u180e", "\u2003",
         "\u200b", "\u2028", "\u2029", "\u202f", "\u205f", "\u3000", "\ufeff", "\x1c", "\x1f", " \n ", "\t \t"]
MARKS = ["e\u0301", "a\u0323\u0307", "a\u0307\u0323", "\u1e9b\u0323", "o\u0308\u0301\u0304", "\u0344", "\u0f73", "\u0958",
         "\u2126", "\u212b", "\u1100\u1161\u11a8", "\uac00\u11a8", "\u0301", "\u0301\u0316\u0301\u0316", "\u09c7\u09be", "ﬁ"]
QUOTES = ["'s", "'S", "'t", "'LL", "'ll", "'re", "'VE", "'d", "'m", "’s", "'\u017f", "'\u017F'", "'K", "\u212a", "''s", "'", "'x"]
NUMBERS = ["0", "7", "42", "1234567", "3.14159", "1,000,000", "0xdeadbeef", "１２３", "½", "Ⅷ", "②", "٣", "10²", "²³", "1e-9", "2026-11-22"]

ASSIGNED = None


def assigned():
    """Characters of Unicode 3.2: known, with one category, to every library's tables that meet here."""
    global ASSIGNED
    if ASSIGNED is None:
        old = unicodedata.ucd_3_2_0
        ASSIGNED = [c for c in map(chr, range(0x30000)) if old.category(c) not in ("Cn", "Cs", "Co")
                    and old.category(c) == unicodedata.category(c)]
    return ASSIGNED


def words(r, source, n):
    source = source.split(" ")
    at = r.randrange(len(source))
    return " ".join(source[(at + i) % len(source)] for i in range(n))


def piece(r, special):
    kind = r.randrange(16)
    if kind <= 1:
        return words(r, PROSE, r.randint(1, 12))
    if kind <= 3:
        at = r.randrange(len(CODE))
        return CODE[at:at + r.randint(1, 80)]
    if kind <= 6:
        source = (EAST_ASIAN, RIGHT_TO_LEFT, INDIC)[kind - 4]
        at = r.randrange(len(source))
        return source[at:at + r.randint(1, 20)]
    if kind == 7:
        return "".join(r.choices(EMOJI, k=r.randint(1, 4)))
    if kind == 8:
        return "".join(r.choices(MARKS, k=r.randint(1, 4)))
    if kind == 9:
        return "".join(chr(r.randrange(0x20)) if r.random() < .8 else chr(r.randrange(0x7f, 0xa0)) for _ in range(r.randint(1, 6)))
    if kind == 10:
        return "".join(r.choices(WHITE, k=r.randint(1, 6)))
    if kind == 11:
        return r.choice(["", " "]) + r.choice(NUMBERS) + r.choice(["", " ", "."])
    if kind == 12:
        return r.choice(["it", "IT", "日", " ", ""]) + "".join(r.choices(QUOTES, k=r.randint(1, 3)))
    if kind == 13:
        return "".join(r.choices(assigned(), k=r.randint(1, 12)))
    if kind == 14 and r.random() < .15:
        unit = r.choice(["a", "ab", "é", "字", " ", "-", "0", "\n", "=!", "\u0301", "lol", "A'"])
        return unit * r.randint(20, 300)
    if kind == 15 and special:
        token = r.choice(special)
        cut = r.randrange(len(token)) if r.random() < .3 else len(token)
        return token[:cut] + r.choice(["", " ", token])
    return r.choice(["foretoken", "_", "__init__", "http://", "…", "—", "€", "µ", "ß", "ŉ", "İ", "ǅ"])


def lines(n, seed, special=()):
    r = random.Random(seed)
    special = list(special)
    return [r.choice(["", " ", "\n", ""]).join(piece(r, special) for _ in range(r.randint(1, 7))) for _ in range(n)]


def malformed(n, seed):
    """Byte strings that are not UTF-8."""
    r = random.Random(seed)
    out = [b"\xc3", b"a\xff", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90\x80\x80", b"\xe2\x82", b"\xf0\x9f\x98", b"ok \xe0\x80\x80"]
    while len(out) < n:
        data = bytearray("".join(lines(1, r.random())).encode()[:40])
        for _ in range(r.randint(1, 3)):
            if data:
                data[r.randrange(len(data))] = r.randrange(0x80, 0x100)
        try:
            bytes(data).decode()
        except UnicodeDecodeError:
            out.append(bytes(data))
    return out
