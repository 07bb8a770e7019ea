package raftstore

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

// A connection begins with a handshake: both ends prove that they have the
// cluster's key. The dialer goes first, and until its proof is checked the
// listener has said nothing but 32 random bytes.
//
//	dialer    opening: magic, version, a nonce
//	listener  a nonce
//	dialer    greeting: what it wants, both names, its claims; proof
//	listener  answer: welcome and its claims, or a refusal; proof
//	dialer    verdict: welcome, or a refusal; proof
//
// A proof is an HMAC over everything that both ends have said so far, the
// cluster's id and, with TLS, what only the two ends of this TLS connection
// know. So it is good for this connection, this place in it, and these names
// and claims. A dialer without the key, or with another one, is hung up on
// without a word; a refusal is read by members only.
const (
	preambleMagic   = "CANTUSRP"
	preambleVersion = 2
	// preambleHead is what every version has in common: magic, version, and
	// the length of the rest.
	preambleHead = len(preambleMagic) + 2 + 2
	openingSize  = preambleHead + nonceSize + crcSize
	nonceSize    = 32
	proofSize    = sha256.Size
	// minKey is the least size of the cluster's key, in bytes.
	minKey = 32
	// maxName bounds the names of nodes and clusters, in bytes.
	maxName = 255
	// maxClaims bounds what an end may claim, in bytes.
	maxClaims = 4 << 10
	// maxRefusal bounds the text of a refusal.
	maxRefusal = 1024
	// greetingMost bounds a greeting without its proof.
	greetingMost = 1 + 4 + 3*(1+maxName) + maxClaims
	// answerMost bounds an answer without its proof.
	answerMost = 1 + max(maxClaims, maxRefusal)
	crcSize    = 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// connKind is what a connection is for.
type connKind uint8

const (
	kindRaft  connKind = 1
	kindFetch connKind = 2
	kindBeats connKind = 3 // of all groups; the greeting's says nothing
	kindGreet connKind = 4 // nothing but the handshake
)

// greeting says what a dialer wants, and of whom.
type greeting struct {
	kind   connKind
	group  uint32
	from   string
	id     string // of the dialer's data directory
	to     string
	claims []byte
}

var (
	errNoPreamble = errors.New("no preamble of a Cantus node")
	errPreamble   = errors.New("malformed preamble")
	errGreeting   = errors.New("malformed greeting")
	errProof      = errors.New("it does not prove that it has the cluster's secret")
	errNoAnswer   = errors.New("what answers is no replication port of this cluster")
	errHungUp     = errors.New("it has hung up: it may be of another cluster, or have another cluster secret")
)

// versionError is met with a preamble of a version that is not known.
type versionError uint16

func (v versionError) Error() string {
	return fmt.Sprintf("protocol %d is not known, %d is", uint16(v), preambleVersion)
}

// refusedError is a refusal of a connection.
type refusedError struct{ text string }

func (e refusedError) Error() string { return "refused: " + e.text }

func (e refusedError) Is(target error) bool { return target == ErrRefused }

// transcript is what both ends of a connection have said so far.
type transcript struct {
	key  []byte
	said hash.Hash
}

// newTranscript begins one for a cluster. binding is what ties it to a TLS
// connection, nil without TLS.
func newTranscript(key []byte, cluster string, binding []byte) *transcript {
	t := &transcript{key: key, said: sha256.New()}
	for _, b := range [][]byte{[]byte(cluster), binding} {
		t.said.Write(binary.BigEndian.AppendUint32(nil, uint32(len(b))))
		t.said.Write(b)
	}
	return t
}

func (t *transcript) add(b []byte) { t.said.Write(b) }

// The steps that have a proof.
const (
	stepGreeting = "dialer greets"
	stepAnswer   = "listener answers"
	stepVerdict  = "dialer agrees"
)

// proof returns the proof of a step, of all that was added.
func (t *transcript) proof(step string) []byte {
	mac := hmac.New(sha256.New, t.key)
	mac.Write([]byte(step))
	mac.Write(t.said.Sum(nil))
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

// receive reads what send wrote, of at most so many bytes, and no byte more.
func (t *transcript) receive(r io.Reader, step string, most int) ([]byte, error) {
	b := make([]byte, 2)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(b))
	if n > most {
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

// opening encodes what a connection begins with.
func opening(nonce []byte) []byte {
	b := append(make([]byte, 0, openingSize), preambleMagic...)
	b = binary.BigEndian.AppendUint16(b, preambleVersion)
	b = binary.BigEndian.AppendUint16(b, nonceSize+crcSize)
	b = append(b, nonce...)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// readOpening reads an opening and no byte more. The error is errNoPreamble if
// it is none, a versionError, errPreamble, or the reader's.
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
	_, _ = rand.Read(b) // never fails, says crypto/rand
	return b
}

func (g greeting) encode() []byte {
	b := append(make([]byte, 0, 128), byte(g.kind))
	b = binary.BigEndian.AppendUint32(b, g.group)
	for _, s := range []string{g.from, g.id, g.to} {
		b = append(b, byte(len(s)))
		b = append(b, s...)
	}
	return append(b, g.claims...)
}

// decodeGreeting decodes a greeting, which it aliases.
func decodeGreeting(b []byte) (g greeting, err error) {
	if len(b) < 5 {
		return g, fmt.Errorf("%w: it has %d bytes", errGreeting, len(b))
	}
	g.kind, g.group = connKind(b[0]), binary.BigEndian.Uint32(b[1:])
	rest := b[5:]
	for _, s := range []*string{&g.from, &g.id, &g.to} {
		if len(rest) == 0 || len(rest) < 1+int(rest[0]) {
			return g, fmt.Errorf("%w: a name ends early", errGreeting)
		}
		end := 1 + int(rest[0])
		*s, rest = string(rest[1:end]), rest[end:]
	}
	g.claims = rest
	if g.kind < kindRaft || g.kind > kindGreet {
		return g, fmt.Errorf("%w: kind %d is not known", errGreeting, g.kind)
	}
	return g, nil
}

// What a greeting, or an answer, is answered with.
const (
	statusWelcome byte = 0
	statusRefused byte = 1
)

// welcome encodes a welcome with claims.
func welcome(claims []byte) []byte { return append([]byte{statusWelcome}, claims...) }

// refusal encodes a refusal with its text.
func refusal(text string) []byte {
	if len(text) > maxRefusal {
		text = text[:maxRefusal]
	}
	return append([]byte{statusRefused}, text...)
}

// decodeAnswer returns the claims of a welcome. The error is a refusedError for
// a refusal.
func decodeAnswer(b []byte) (claims []byte, err error) {
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

// channelBinding returns what both ends of a TLS connection, and nobody else,
// can know of it: a proof that covers it can't be relayed to another one.
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

// noHangUp says of an end of the stream that the peer has hung up.
func noHangUp(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errHungUp
	}
	return err
}
