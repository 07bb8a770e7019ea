package peernet

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"reflect"
	"strings"
	"testing"
)

// testKey is the key of the clusters in tests.
var testKey = bytes.Repeat([]byte("k"), minKey)

func TestGreetingRoundTrip(t *testing.T) {
	long := strings.Repeat("x", maxName)
	for _, g := range []greeting{
		{Raft, 0, "", "", "", []byte{}},
		{Fetch, 1<<32 - 1, long, long, long, make([]byte, maxPayload)},
		{Raft, 7, "n1", "id", "n2", []byte("payload")},
		{Heartbeats, 0, "n1", "", "n2", []byte{}},
	} {
		b := g.encode()
		if got, err := decodeGreeting(b); err != nil || !reflect.DeepEqual(got, g) {
			t.Errorf("got %+v, %v, want %+v", got, err, g)
		}
		if len(b) > maxGreeting {
			t.Errorf("the greeting has %d bytes, more than %d", len(b), maxGreeting)
		}
	}
}

func TestGreetingErrors(t *testing.T) {
	good := greeting{Raft, 7, "n1", "id", "n2", nil}.encode()
	for what, b := range map[string][]byte{
		"nothing":         nil,
		"no names":        good[:5],
		"half a name":     good[:7],
		"one name":        good[:8],
		"a name too long": append(bytes.Clone(good[:5]), 200, 'x'),
		"kind 0":          append([]byte{0}, good[1:]...),
		"kind 9":          append([]byte{9}, good[1:]...),
	} {
		if _, err := decodeGreeting(b); !errors.Is(err, errGreeting) {
			t.Errorf("%s: got %v", what, err)
		}
	}
}

func TestOpeningErrors(t *testing.T) {
	good := encodeOpening(newNonce())
	change := func(at int, b ...byte) []byte {
		return append(append(bytes.Clone(good[:at]), b...), good[at+len(b):]...)
	}
	for what, c := range map[string]struct {
		b    []byte
		want error
	}{
		"a good one":       {good, nil},
		"another protocol": {[]byte("GET / HTTP/1.1\r\n\r\n"), errNoPreamble},
		"nothing":          {nil, io.EOF},
		"half a magic":     {good[:4], io.ErrUnexpectedEOF},
		"half":             {good[:len(good)/2], io.ErrUnexpectedEOF},
		"all but one byte": {good[:len(good)-1], io.ErrUnexpectedEOF},
		"version 1":        {change(8, 0, 1), versionError(1)},
		"a huge length":    {change(10, 0xff, 0xff), errPreamble},
		"length 0":         {change(10, 0, 0), errPreamble},
		"a flipped bit":    {change(20, good[20]^1), errPreamble},
	} {
		if _, err := readOpening(bytes.NewReader(c.b)); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", what, err, c.want)
		}
	}
}

func TestAnswers(t *testing.T) {
	if payload, err := decodeAnswer(encodeWelcome([]byte("payload"))); err != nil || string(payload) != "payload" {
		t.Errorf("got %q, %v", payload, err)
	}
	for _, text := range []string{"I am n1, not n2", strings.Repeat("x", 2*maxRefusal), "\xff"} {
		if _, err := decodeAnswer(encodeRefusal(text)); !errors.As(err, new(refusedError)) {
			t.Errorf("got %v", err)
		}
	}
	for _, b := range [][]byte{nil, {7}, []byte("HTTP/1.1 400 Bad Request\r\n")} {
		if _, err := decodeAnswer(b); !errors.Is(err, errNoAnswer) {
			t.Errorf("%q: got %v", b, err)
		}
	}
}

// A proof is valid only for its step, connection, transcript, key and cluster.
func TestAProofIsValidForOneHandshake(t *testing.T) {
	after := func(key []byte, cluster, binding, before string) *transcript {
		tr := newTranscript(key, cluster, []byte(binding))
		tr.add([]byte(before))
		return tr
	}
	var sent bytes.Buffer
	if err := after(testKey, "c", "b", "nonces").send(&sent, stepGreeting, []byte("body")); err != nil {
		t.Fatal(err)
	}
	b := sent.Bytes()
	flipped := bytes.Clone(b)
	flipped[3] ^= 1
	for what, c := range map[string]struct {
		tr   *transcript
		step string
		b    []byte
		ok   bool
	}{
		"the same":           {after(testKey, "c", "b", "nonces"), stepGreeting, b, true},
		"another key":        {after(bytes.Repeat([]byte("x"), minKey), "c", "b", "nonces"), stepGreeting, b, false},
		"another cluster":    {after(testKey, "d", "b", "nonces"), stepGreeting, b, false},
		"another connection": {after(testKey, "c", "x", "nonces"), stepGreeting, b, false},
		"names that run on":  {after(testKey, "cb", "", "nonces"), stepGreeting, b, false},
		"other nonces":       {after(testKey, "c", "b", "others"), stepGreeting, b, false},
		"another step":       {after(testKey, "c", "b", "nonces"), stepAnswer, b, false},
		"a flipped bit":      {after(testKey, "c", "b", "nonces"), stepGreeting, flipped, false},
		"too long":           {after(testKey, "c", "b", "nonces"), stepGreeting, append([]byte{0xff, 0xff}, b[2:]...), false},
	} {
		got, err := c.tr.receive(bytes.NewReader(c.b), c.step, 100)
		if c.ok && (err != nil || string(got) != "body") || !c.ok && !errors.Is(err, errProof) {
			t.Errorf("%s: got %q, %v", what, got, err)
		}
	}
}

func FuzzPreamble(f *testing.F) {
	f.Add(encodeOpening(newNonce()))
	f.Add(greeting{Raft, 7, "n1", "id", "n2", []byte("payload")}.encode())
	f.Add(encodeRefusal("no"))
	f.Add([]byte(preambleMagic + "\x00\x02\xff\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if o, err := readOpening(bytes.NewReader(b)); err == nil && !bytes.HasPrefix(b, o) {
			t.Errorf("%q was read as %q", b, o)
		}
		if g, err := decodeGreeting(b); err == nil && !bytes.Equal(g.encode(), b) {
			t.Errorf("%q was read as %+v", b, g)
		}
		_, _ = decodeAnswer(b)
		_, _ = newTranscript(testKey, "c", nil).receive(bytes.NewReader(b), stepGreeting, maxGreeting)
	})
}

// capture is a connection that records writes to out, and reads from in.
type capture struct {
	net.Conn
	in  io.Reader
	out bytes.Buffer
}

func (c *capture) Read(p []byte) (int, error)  { return c.in.Read(p) }
func (c *capture) Write(p []byte) (int, error) { return c.out.Write(p) }

func reading(b []byte) *Conn {
	c := &capture{in: bytes.NewReader(b)}
	return newConn(c, bufio.NewReaderSize(c, readBuffer), false, false)
}

func TestFramesCarryAStream(t *testing.T) {
	for _, coalesce := range []bool{false, true} {
		c := &capture{}
		w := newConn(c, nil, coalesce, false)
		var want []byte
		for _, n := range []int{1, 7, 0, smallFrame, smallFrame + 1, MaxFrame, MaxFrame + 1, 3*MaxFrame + 5} {
			p := bytes.Repeat([]byte{byte(n)}, n)
			want = append(want, p...)
			if written, err := w.Write(p); written != n || err != nil {
				t.Fatalf("wrote %d of %d: %v", written, n, err)
			}
		}
		for _, most := range []int{1, 100, smallFrame, MaxFrame, len(want)} {
			r := reading(c.out.Bytes())
			var got []byte
			for p := make([]byte, most); ; {
				n, err := r.Read(p)
				got = append(got, p[:n]...)
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			if !bytes.Equal(got, want) {
				t.Fatalf("read %d bytes by %d, wrote %d", len(got), most, len(want))
			}
		}
	}
}

func TestMalformedFrames(t *testing.T) {
	c := &capture{}
	if _, err := newConn(c, nil, false, false).Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	good := c.out.Bytes()
	flipped := bytes.Clone(good)
	flipped[len(flipped)-1] ^= 1
	for what, x := range map[string]struct {
		b    []byte
		want error
	}{
		"too long":        {binary.BigEndian.AppendUint64(nil, (MaxFrame+1)<<32), errFrame},
		"of no bytes":     {make([]byte, 8), errFrame},
		"flipped bit":     {flipped, errFrame},
		"half a header":   {good[:4], io.ErrUnexpectedEOF},
		"half a payload":  {good[:10], io.ErrUnexpectedEOF},
		"only the header": {good[:8], io.ErrUnexpectedEOF},
		"the end":         {nil, io.EOF},
	} {
		for _, size := range []int{1, 100} {
			n, err := reading(x.b).Read(make([]byte, size))
			if n != 0 || !errors.Is(err, x.want) {
				t.Errorf("%s: got %d, %v, want %v", what, n, err, x.want)
			}
		}
	}
}

func FuzzFrames(f *testing.F) {
	c := &capture{}
	_, _ = newConn(c, nil, false, false).Write([]byte("hello"))
	f.Add(c.out.Bytes(), uint64(1))
	f.Add([]byte("\x00\x00\x00\x05aaaahello"), uint64(2))
	f.Fuzz(func(t *testing.T, b []byte, seed uint64) {
		random := rand.New(rand.NewPCG(seed, 0))
		r := reading(b)
		for n := 0; ; {
			m, err := r.Read(make([]byte, 1+random.IntN(100)))
			if n += m; n > len(b) {
				t.Fatalf("read %d bytes out of %d", n, len(b))
			}
			if err != nil {
				return
			}
		}
	})
}
