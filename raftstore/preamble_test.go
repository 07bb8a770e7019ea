package raftstore

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"testing"
)

func TestPreambleGivesBackWhatItWasGiven(t *testing.T) {
	for _, p := range []preamble{
		{kindRaft, 0, "", "", ""},
		{kindFetch, 1<<32 - 1, strings.Repeat("c", maxName), strings.Repeat("f", maxName), strings.Repeat("t", maxName)},
		{kindRaft, 7, "c", "n1", "n2"},
		{kindBeats, 0, "c", "n1", "n2"},
	} {
		r := bytes.NewReader(append(p.encode(), "more"...))
		got, err := readPreamble(r)
		if err != nil || got != p {
			t.Errorf("got %+v, %v, want %+v", got, err, p)
		}
		if r.Len() != 4 {
			t.Errorf("%d bytes are left of 4", r.Len())
		}
	}
}

func TestPreambleErrors(t *testing.T) {
	good := preamble{kindRaft, 7, "cluster", "n1", "n2"}.encode()
	change := func(at int, b ...byte) []byte {
		return append(append(bytes.Clone(good[:at]), b...), good[at+len(b):]...)
	}
	for what, c := range map[string]struct {
		b    []byte
		want error
	}{
		"another protocol": {[]byte("GET / HTTP/1.1\r\n\r\n"), errNoPreamble},
		"nothing":          {nil, io.EOF},
		"half a magic":     {good[:4], io.ErrUnexpectedEOF},
		"half":             {good[:len(good)/2], io.ErrUnexpectedEOF},
		"all but one byte": {good[:len(good)-1], io.ErrUnexpectedEOF},
		"version 2":        {change(8, 0, 2), versionError(2)},
		"a huge length":    {change(10, 0xff, 0xff), errPreamble},
		"length 0":         {change(10, 0, 0), errPreamble},
		"a flipped bit":    {change(20, good[20]^1), errPreamble},
		"kind 9":           {preamble{9, 7, "c", "n1", "n2"}.encode(), errPreamble},
	} {
		if _, err := readPreamble(bytes.NewReader(c.b)); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", what, err, c.want)
		}
	}
}

func TestAnswers(t *testing.T) {
	if err := readAnswer(bytes.NewReader(answer(""))); err != nil {
		t.Error(err)
	}
	for _, text := range []string{"this is cluster a, not b", strings.Repeat("x", 2*maxRefusal), "\xff"} {
		err := readAnswer(bytes.NewReader(answer(text)))
		if !errors.As(err, new(refusedError)) {
			t.Errorf("got %v", err)
		}
	}
	bad := answer("text")
	bad[5] ^= 1
	for _, b := range [][]byte{bad, []byte("HTTP/1.1 400 Bad Request\r\n"), {0, 0xff, 0xff, 0}, {7, 0, 0, 0}} {
		if err := readAnswer(bytes.NewReader(b)); !errors.Is(err, errNoAnswer) {
			t.Errorf("%q: got %v", b, err)
		}
	}
}

func FuzzPreamble(f *testing.F) {
	f.Add(preamble{kindRaft, 7, "cluster", "n1", "n2"}.encode())
	f.Add(answer("no"))
	f.Add([]byte(preambleMagic + "\x00\x01\xff\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, err := readPreamble(bytes.NewReader(b)); err == nil && !bytes.HasPrefix(b, p.encode()) {
			t.Errorf("%q was read as %+v", b, p)
		}
		_ = readAnswer(bytes.NewReader(b))
		if e, err := decodeFetched(b); err == nil && e.Index > 0 && len(e.Data) > len(b) {
			t.Error("an entry is longer than what it is in")
		}
	})
}

// capture is a connection that keeps what is written, and gives what it was
// made with.
type capture struct {
	net.Conn
	in  io.Reader
	out bytes.Buffer
}

func (c *capture) Read(p []byte) (int, error)  { return c.in.Read(p) }
func (c *capture) Write(p []byte) (int, error) { return c.out.Write(p) }

func reading(b []byte) *link {
	c := &capture{in: bytes.NewReader(b)}
	return newLink(c, bufio.NewReaderSize(c, readAhead), false, false)
}

func TestFramesCarryAStream(t *testing.T) {
	for _, gather := range []bool{false, true} {
		c := &capture{}
		w := newLink(c, nil, gather, false)
		var want []byte
		for _, n := range []int{1, 7, 0, smallFrame, smallFrame + 1, maxFrame, maxFrame + 1, 3*maxFrame + 5} {
			p := bytes.Repeat([]byte{byte(n)}, n)
			want = append(want, p...)
			if written, err := w.Write(p); written != n || err != nil {
				t.Fatalf("wrote %d of %d: %v", written, n, err)
			}
		}
		for _, most := range []int{1, 100, smallFrame, maxFrame, len(want)} {
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

func TestFramesThatAreNone(t *testing.T) {
	c := &capture{}
	if _, err := newLink(c, nil, false, false).Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	good := c.out.Bytes()
	flipped := bytes.Clone(good)
	flipped[len(flipped)-1] ^= 1
	for what, x := range map[string]struct {
		b    []byte
		want error
	}{
		"too long":        {binary.BigEndian.AppendUint64(nil, (maxFrame+1)<<32), errFrame},
		"of no bytes":     {make([]byte, 8), errFrame},
		"flipped bit":     {flipped, errFrame},
		"half a header":   {good[:4], io.ErrUnexpectedEOF},
		"half a payload":  {good[:10], io.ErrUnexpectedEOF},
		"only the header": {good[:8], io.ErrUnexpectedEOF},
		"the end":         {nil, io.EOF},
	} {
		for _, room := range []int{1, 100} {
			n, err := reading(x.b).Read(make([]byte, room))
			if n != 0 || !errors.Is(err, x.want) {
				t.Errorf("%s: got %d, %v, want %v", what, n, err, x.want)
			}
		}
	}
}

func FuzzFrames(f *testing.F) {
	c := &capture{}
	_, _ = newLink(c, nil, false, false).Write([]byte("hello"))
	f.Add(c.out.Bytes(), uint64(1))
	f.Add([]byte("\x00\x00\x00\x05aaaahello"), uint64(2))
	f.Fuzz(func(t *testing.T, b []byte, seed uint64) {
		random := rand.New(rand.NewPCG(seed, 0))
		r := reading(b)
		for n := 0; ; {
			m, err := r.Read(make([]byte, 1+random.IntN(100)))
			if n += m; n > len(b) {
				t.Fatalf("%d bytes came out of %d", n, len(b))
			}
			if err != nil {
				return
			}
		}
	})
}

func ExampleNetwork() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	network, err := NewNetwork(NetworkOptions{
		Node: "n1", Cluster: "9f2c", Listener: listener,
		Resolve: func(node string) (string, error) { return node + ".example.com:4250", nil },
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer network.Close()
	// Open(Options{Node: "n1", Voters: []string{"n1", "n2", "n3"}, Network: network, ID: 0, …})
	fmt.Println(network.Addr().Network())
	// Output: tcp
}
