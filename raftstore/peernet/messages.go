package peernet

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"unicode/utf8"
)

// A connection begins with a handshake, after the TLS handshake if TLS is used.
// Both ends prove that they have the cluster's key. The dialer proves it first:
// until it has, the listener sends nothing but 32 random bytes.
//
//	dialer    opening: magic, version, a nonce
//	listener  a nonce
//	dialer    greeting: purpose, group, both names, its payload; proof
//	listener  answer: welcome and its payload, or a refusal; proof
//	dialer    confirmation: welcome, or a refusal; proof
//
// Integers are big-endian, checksums CRC-32C. The opening is
//
//	offset  size
//	     0     8  "CANTUSRP"
//	     8     2  version, 2
//	    10     2  length of the rest, 36
//	    12    32  the dialer's nonce
//	    44     4  checksum of the bytes before it
//
// Later versions keep the layout of magic, version and length. The listener
// replies with its nonce of 32 bytes. Each of the other three messages is a
// length (2 bytes), a body of that length, and a proof (32 bytes). The body of
// the greeting is
//
//	0     1  purpose: 1 Raft, 2 fetch, 3 heartbeats, 4 handshake only
//	1     4  group; 0 if the purpose has no groups
//	5        three names, each one byte of length and that many bytes: the dialing
//	         node, the id of its data directory, the node that it wants to reach
//	end      the dialer's payload, at most 4 KiB
//
// The bodies of the answer and the confirmation are
//
//	0     1  status: 0 welcome, 1 refused
//	1        the listener's payload (none in the confirmation), or the reason
//
// A proof is the HMAC-SHA256, with the cluster's key, of the step's name
// ("dialer greets", "listener answers" or "dialer agrees") and the SHA-256 of
// the transcript. The transcript is the cluster's id and the channel binding,
// each after its length in 4 bytes, the opening, the listener's nonce, and the
// length, body and proof of each message so far. The channel binding is the 32
// bytes that TLS exports under "EXPORTER-cantus-replication", which only the
// two ends of that TLS connection can compute. Without TLS it is empty. So a
// proof is valid only on one connection, for one step, and for these names and
// payload.
//
// The listener closes the connection without a reply if the opening is
// malformed, the greeting has no valid proof, or the dialer takes longer than
// five seconds. Only a dialer with a valid proof receives the reason for a
// refusal.
const (
	preambleMagic   = "CANTUSRP"
	preambleVersion = 2
	// preambleHead is the size of the part that all versions have in common:
	// magic, version, and the length of the rest.
	preambleHead = len(preambleMagic) + 2 + 2
	openingSize  = preambleHead + nonceSize + crcSize
	nonceSize    = 32
	proofSize    = sha256.Size
	// minKey is the minimum size of the cluster's key, in bytes.
	minKey = 32
	// maxName bounds the names of nodes and clusters, in bytes.
	maxName = 255
	// maxPayload bounds the payload of one end, in bytes.
	maxPayload = 4 << 10
	// maxRefusal bounds the text of a refusal, in bytes.
	maxRefusal = 1024
	// maxGreeting bounds the body of a greeting, in bytes.
	maxGreeting = 1 + 4 + 3*(1+maxName) + maxPayload
	// maxAnswer bounds the body of an answer or a confirmation, in bytes.
	maxAnswer = 1 + max(maxPayload, maxRefusal)
	crcSize   = 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Purpose is the use of a connection. Its values are part of the protocol.
type Purpose uint8

// The purposes.
const (
	Raft          Purpose = 1 // requests and responses of a Raft group
	Fetch         Purpose = 2 // a copy of a group's log
	Heartbeats    Purpose = 3 // the heartbeats of all groups
	handshakeOnly Purpose = 4 // closed after the handshake
)

// greeting is a dialer's request: what the connection is for, and between which
// nodes.
type greeting struct {
	purpose Purpose
	group   uint32
	from    string
	id      string // of the dialer's data directory
	to      string
	payload []byte
}

var (
	errNoPreamble = errors.New("it does not begin with the preamble of a Cantus node")
	errPreamble   = errors.New("malformed preamble")
	errGreeting   = errors.New("malformed greeting")
	errProof      = errors.New("it does not prove that it has the cluster's secret")
	errNoAnswer   = errors.New("the listener is not a replication port of this cluster")
	errPeerClosed = errors.New("it closed the connection: it may be of another cluster, or have another cluster secret")
)

// versionError is the error for an opening of an unknown version.
type versionError uint16

func (v versionError) Error() string {
	return fmt.Sprintf("protocol version %d is not supported, only %d", uint16(v), preambleVersion)
}

// refusedError is the error for a refused connection.
type refusedError struct{ text string }

func (e refusedError) Error() string { return "refused: " + e.text }

func (e refusedError) Is(target error) bool { return target == ErrRefused }

// transcript hashes the messages of both ends of a connection.
type transcript struct {
	key  []byte
	hash hash.Hash
}

// newTranscript returns a transcript without messages. binding is the channel
// binding, nil without TLS.
func newTranscript(key []byte, cluster string, binding []byte) *transcript {
	t := &transcript{key: key, hash: sha256.New()}
	for _, b := range [][]byte{[]byte(cluster), binding} {
		t.hash.Write(binary.BigEndian.AppendUint32(nil, uint32(len(b))))
		t.hash.Write(b)
	}
	return t
}

func (t *transcript) add(b []byte) { t.hash.Write(b) }

// The names of the steps that have a proof.
const (
	stepGreeting     = "dialer greets"
	stepAnswer       = "listener answers"
	stepConfirmation = "dialer agrees"
)

// proof returns the proof of a step over the transcript so far.
func (t *transcript) proof(step string) []byte {
	mac := hmac.New(sha256.New, t.key)
	mac.Write([]byte(step))
	mac.Write(t.hash.Sum(nil))
	return mac.Sum(nil)
}

// send writes a message with its length and its proof.
func (t *transcript) send(w io.Writer, step string, body []byte) error {
	b := binary.BigEndian.AppendUint16(nil, uint16(len(body)))
	b = append(b, body...)
	t.add(b)
	proof := t.proof(step)
	t.add(proof)
	_, err := w.Write(append(b, proof...))
	return err
}

// receive reads a message in the form that send writes, checks its proof, and
// returns its body, of at most limit bytes. It reads nothing beyond the
// message.
func (t *transcript) receive(r io.Reader, step string, limit int) ([]byte, error) {
	b := make([]byte, 2)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(b))
	if n > limit {
		return nil, fmt.Errorf("%w: its length can't be %d", errProof, n)
	}
	b = append(b, make([]byte, n+proofSize)...)
	if _, err := io.ReadFull(r, b[2:]); err != nil {
		return nil, err
	}
	t.add(b[:2+n])
	if !hmac.Equal(t.proof(step), b[2+n:]) {
		return nil, errProof
	}
	t.add(b[2+n:])
	return b[2 : 2+n], nil
}

// encodeOpening returns the opening with a nonce.
func encodeOpening(nonce []byte) []byte {
	b := append(make([]byte, 0, openingSize), preambleMagic...)
	b = binary.BigEndian.AppendUint16(b, preambleVersion)
	b = binary.BigEndian.AppendUint16(b, nonceSize+crcSize)
	b = append(b, nonce...)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// readOpening reads an opening, and nothing beyond it. The error wraps
// errNoPreamble or errPreamble, is a versionError, or is the reader's.
func readOpening(r io.Reader) ([]byte, error) {
	b := make([]byte, openingSize)
	if _, err := io.ReadFull(r, b[:len(preambleMagic)]); err != nil {
		return nil, err
	}
	if string(b[:len(preambleMagic)]) != preambleMagic {
		return nil, errNoPreamble
	}
	if _, err := io.ReadFull(r, b[len(preambleMagic):preambleHead]); err != nil {
		return nil, err
	}
	if v := binary.BigEndian.Uint16(b[len(preambleMagic):]); v != preambleVersion {
		return nil, versionError(v)
	}
	if n := int(binary.BigEndian.Uint16(b[preambleHead-2:])); n != openingSize-preambleHead {
		return nil, fmt.Errorf("%w: its length can't be %d", errPreamble, n)
	}
	if _, err := io.ReadFull(r, b[preambleHead:]); err != nil {
		return nil, err
	}
	body := b[:openingSize-crcSize]
	if crc32.Checksum(body, castagnoli) != binary.BigEndian.Uint32(b[len(body):]) {
		return nil, fmt.Errorf("%w: checksum is wrong", errPreamble)
	}
	return b, nil
}

func newNonce() []byte {
	b := make([]byte, nonceSize)
	_, _ = rand.Read(b) // crypto/rand: it never returns an error
	return b
}

func (g greeting) encode() []byte {
	b := append(make([]byte, 0, 128), byte(g.purpose))
	b = binary.BigEndian.AppendUint32(b, g.group)
	for _, s := range []string{g.from, g.id, g.to} {
		b = append(b, byte(len(s)))
		b = append(b, s...)
	}
	return append(b, g.payload...)
}

// decodeGreeting decodes a greeting. The payload aliases b.
func decodeGreeting(b []byte) (g greeting, err error) {
	if len(b) < 5 {
		return g, fmt.Errorf("%w: it has %d bytes", errGreeting, len(b))
	}
	g.purpose, g.group = Purpose(b[0]), binary.BigEndian.Uint32(b[1:])
	rest := b[5:]
	for _, s := range []*string{&g.from, &g.id, &g.to} {
		if len(rest) == 0 || len(rest) < 1+int(rest[0]) {
			return g, fmt.Errorf("%w: a name ends early", errGreeting)
		}
		end := 1 + int(rest[0])
		*s, rest = string(rest[1:end]), rest[end:]
	}
	g.payload = rest
	if g.purpose < Raft || g.purpose > handshakeOnly {
		return g, fmt.Errorf("%w: kind %d is not known", errGreeting, g.purpose)
	}
	return g, nil
}

// The status of an answer or a confirmation.
const (
	statusWelcome byte = 0
	statusRefused byte = 1
)

// encodeWelcome returns the body of a welcome.
func encodeWelcome(payload []byte) []byte { return append([]byte{statusWelcome}, payload...) }

// encodeRefusal returns the body of a refusal. It truncates a long text.
func encodeRefusal(text string) []byte {
	if len(text) > maxRefusal {
		text = text[:maxRefusal]
	}
	return append([]byte{statusRefused}, text...)
}

// decodeAnswer decodes the body of an answer or a confirmation. It returns the
// payload of a welcome. For a refusal, the error is a refusedError.
func decodeAnswer(b []byte) (payload []byte, err error) {
	switch {
	case len(b) == 0 || b[0] > statusRefused:
		return nil, errNoAnswer
	case b[0] == statusWelcome:
		return b[1:], nil
	case !utf8.Valid(b):
		b = bytes.ToValidUTF8(b, []byte("?"))
	}
	return nil, refusedError{string(b[1:])}
}

// channelBinding returns a secret that only the two ends of a TLS connection
// know, or nil without TLS. A proof that covers it can't be relayed to another
// connection.
func channelBinding(secure *tls.Conn) ([]byte, error) {
	if secure == nil {
		return nil, nil
	}
	state := secure.ConnectionState()
	b, err := state.ExportKeyingMaterial("EXPORTER-cantus-replication", nil, 32)
	if err != nil {
		return nil, fmt.Errorf("TLS: channel binding: %w", err)
	}
	return b, nil
}

// peerClosed maps the end of the stream to errPeerClosed.
func peerClosed(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errPeerClosed
	}
	return err
}
