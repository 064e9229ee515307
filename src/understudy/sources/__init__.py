"""The data room: image sources in, replayable batches of views out.

`sources` lists and reads images (never their labels unless asked), `decode` makes RGB of whatever a file holds,
`pixels` keeps small images decoded, `views` augments, `batches` decides which images meet, `loader` brings it all to
the training loop. Everything random is addressed, not drawn: the same seed, image and view number give the same pixels
on any machine, for any number of workers, in any order (`philox`). `targets` names the sets that an encoder is judged
on; `objects`, `masks` and `videos` read those with boxes, class masks and masks in time.
"""
