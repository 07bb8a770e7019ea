package raftstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

const (
	preambleMagic   = "CANTUSRP"
	preambleVersion = 1
	// preambleHead is what every version has in common: magic, version, and
	// the length of the rest.
	preambleHead = len(preambleMagic) + 2 + 2
	// preambleMost bounds that rest.
	preambleMost = 1 + 4 + 3*(1+maxName) + crcSize
	// maxName bounds the names of nodes and clusters, in bytes.
	maxName = 255
	// maxRefusal bounds the text of a refusal.
	maxRefusal = 1024
	crcSize    = 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// connKind is what a connection is for.
type connKind uint8

const (
	kindRaft  connKind = 1
	kindFetch connKind = 2
	kindBeats connKind = 3 // of all groups; the preamble's says nothing
)

// preamble is what a connection begins with.
type preamble struct {
	kind    connKind
	group   uint32
	cluster string
	from    string
	to      string
}

var (
	errNoPreamble = errors.New("no preamble of a Cantus node")
	errPreamble   = errors.New("malformed preamble")
)

// versionError is met with a preamble of a version that is not known.
type versionError uint16

func (v versionError) Error() string {
	return fmt.Sprintf("protocol %d is not known, %d is", uint16(v), preambleVersion)
}

func (p preamble) encode() []byte {
	b := append(make([]byte, 0, 128), preambleMagic...)
	b = binary.BigEndian.AppendUint16(b, preambleVersion)
	b = append(b, 0, 0, byte(p.kind))
	b = binary.BigEndian.AppendUint32(b, p.group)
	for _, s := range []string{p.cluster, p.from, p.to} {
		b = append(b, byte(len(s)))
		b = append(b, s...)
	}
	binary.BigEndian.PutUint16(b[preambleHead-2:], uint16(len(b)+crcSize-preambleHead))
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// readPreamble reads a preamble and no byte more. The error is errNoPreamble
// if it is none, a versionError, errPreamble, or the reader's.
func readPreamble(r io.Reader) (preamble, error) {
	b := make([]byte, preambleHead, preambleHead+preambleMost)
	if _, err := io.ReadFull(r, b[:len(preambleMagic)]); err != nil {
		return preamble{}, err
	}
	if string(b[:len(preambleMagic)]) != preambleMagic {
		return preamble{}, errNoPreamble
	}
	if _, err := io.ReadFull(r, b[len(preambleMagic):]); err != nil {
		return preamble{}, err
	}
	if v := binary.BigEndian.Uint16(b[len(preambleMagic):]); v != preambleVersion {
		return preamble{}, versionError(v)
	}
	n := int(binary.BigEndian.Uint16(b[preambleHead-2:]))
	if n > preambleMost || n < 1+4+3+crcSize {
		return preamble{}, fmt.Errorf("%w: its length can't be %d", errPreamble, n)
	}
	b = b[:preambleHead+n]
	if _, err := io.ReadFull(r, b[preambleHead:]); err != nil {
		return preamble{}, err
	}
	return decodePreamble(b)
}

// decodePreamble decodes a whole preamble of this version.
func decodePreamble(b []byte) (preamble, error) {
	body := b[:len(b)-crcSize]
	if crc32.Checksum(body, castagnoli) != binary.BigEndian.Uint32(b[len(body):]) {
		return preamble{}, fmt.Errorf("%w: checksum is wrong", errPreamble)
	}
	p := preamble{kind: connKind(body[preambleHead]), group: binary.BigEndian.Uint32(body[preambleHead+1:])}
	rest := body[preambleHead+5:]
	for _, s := range []*string{&p.cluster, &p.from, &p.to} {
		if len(rest) == 0 || len(rest) < 1+int(rest[0]) {
			return preamble{}, fmt.Errorf("%w: a name ends early", errPreamble)
		}
		end := 1 + int(rest[0])
		*s, rest = string(rest[1:end]), rest[end:]
	}
	if len(rest) > 0 {
		return preamble{}, fmt.Errorf("%w: %d bytes behind the names", errPreamble, len(rest))
	}
	if p.kind < kindRaft || p.kind > kindBeats {
		return preamble{}, fmt.Errorf("%w: kind %d is not known", errPreamble, p.kind)
	}
	return p, nil
}

// Answers to a preamble.
const (
	statusWelcome byte = 0
	statusRefused byte = 1
)

// answer encodes the answer to a preamble: a refusal with a text, or a
// welcome without one.
func answer(refusal string) []byte {
	status := statusWelcome
	if refusal != "" {
		status = statusRefused
	}
	if len(refusal) > maxRefusal {
		refusal = refusal[:maxRefusal]
	}
	b := []byte{status}
	b = binary.BigEndian.AppendUint16(b, uint16(len(refusal)))
	b = append(b, refusal...)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// refusedError is a peer's refusal of a connection, in its words.
type refusedError struct{ text string }

func (e refusedError) Error() string { return "refused: " + e.text }

var errNoAnswer = errors.New("what answers is no replication port of a Cantus node")

// readAnswer reads the answer to a preamble and no byte more.
func readAnswer(r io.Reader) error {
	head := make([]byte, 3)
	if _, err := io.ReadFull(r, head); err != nil {
		return err
	}
	n := int(binary.BigEndian.Uint16(head[1:]))
	if head[0] > statusRefused || n > maxRefusal {
		return errNoAnswer
	}
	rest := make([]byte, n+crcSize)
	if _, err := io.ReadFull(r, rest); err != nil {
		return err
	}
	sum := crc32.Update(crc32.Checksum(head, castagnoli), castagnoli, rest[:n])
	switch {
	case sum != binary.BigEndian.Uint32(rest[n:]):
		return errNoAnswer
	case head[0] == statusRefused:
		return refusedError{string(bytes.ToValidUTF8(rest[:n], []byte("?")))}
	}
	return nil
}
