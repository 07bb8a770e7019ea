package nameindex

import (
	"encoding/binary"
	"math"
	"slices"
)

// placeEvery is how many transactions lie between two of which an index knows
// the entry. Their numbers are multiples of it.
const placeEvery = 64

// Near returns the index of the log's entry that a transaction is in, or of one
// near it: the entries between two whose places are known have about as many
// transactions each. It returns 0 if the index does not know. A place is not
// checked: whoever reads the entry sees whether it is the one.
func (x *Index) Near(txid uint64) (entry uint64) {
	err := x.withPart(txid, func(p part, v *view, s *run) error {
		var low, high uint64
		if s == nil {
			low, high = placesIn(v.places, txid/placeEvery-placesBefore(v.first))
		} else {
			low, high = p.(openedRun).places(txid)
		}
		if entry = low; high > low && low > 0 {
			entry += min(high-low, math.MaxUint32) * (txid % placeEvery) / placeEvery
		}
		return nil
	})
	if err != nil {
		return 0
	}
	return entry
}

// placesBefore returns how many places there are of transactions before one,
// and one of no transaction.
func placesBefore(txid uint64) uint64 { return (txid + placeEvery - 1) / placeEvery }

// placesIn returns the place at i and the one after it, 0 for one that is not
// there.
func placesIn(places []uint64, i uint64) (low, high uint64) {
	if i >= uint64(len(places)) {
		return 0, 0
	}
	if i+1 < uint64(len(places)) {
		high = places[i+1]
	}
	return places[i], high
}

// placeCount returns how many places a run has.
func (s *run) placeCount() uint64 { return placesBefore(s.last+1) - placesBefore(s.first) }

// places returns the place before a transaction and the one after it, 0 for one
// that is not there.
func (s openedRun) places(txid uint64) (low, high uint64) {
	i := txid/placeEvery - placesBefore(s.first)
	if i >= s.placeCount() {
		return 0, 0
	}
	var b [16]byte
	n, _ := s.file.ReadAt(b[:8*min(2, s.placeCount()-i)], s.placesAt()+8*int64(i)) // what can't be read is not known
	return placesIn(decodePlaces(nil, b[:n]), 0)
}

// placesNumber is part of the checksum of the places.
const placesNumber = math.MaxUint32

func (s *run) encodePlaces(places []uint64) (b []byte) {
	for _, at := range places {
		b = binary.LittleEndian.AppendUint64(b, at)
	}
	return binary.LittleEndian.AppendUint32(b, s.checksum(placesNumber, b))
}

func decodePlaces(places []uint64, b []byte) []uint64 {
	for c := range slices.Chunk(b[:len(b)/8*8], 8) {
		places = append(places, binary.LittleEndian.Uint64(c))
	}
	return places
}

// appendPlaces appends all places of the run.
func (s openedRun) appendPlaces(places []uint64) ([]uint64, error) {
	b := make([]byte, s.headSize()-s.placesAt())
	if _, err := s.file.ReadAt(b, s.placesAt()); err != nil {
		return nil, s.damaged("places", err)
	}
	b, sum := b[:len(b)-4], b[len(b)-4:]
	if binary.LittleEndian.Uint32(sum) != s.checksum(placesNumber, b) {
		return nil, s.damaged("places", errChecksum)
	}
	return decodePlaces(places, b), nil
}
