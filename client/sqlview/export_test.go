package sqlview

// ReadParked decodes a row of the table of parked transactions.
var ReadParked = readParked
