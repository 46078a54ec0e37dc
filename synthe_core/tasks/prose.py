"""A text for `passkey` and `needle` to hide things in: written for this package, plain ASCII, without digits.

It is part of the tasks' definition: another text gives other sequences.
"""

PROSE = """
The river comes down from the hills in no hurry. In summer it is so low that children cross it on the stones and
hardly wet their feet. In spring it is another river, brown and loud, and the people who live beside it move their
boats up to the churchyard wall. Nobody in the town remembers a year in which the water reached the wall itself. There
is a line cut into the wall all the same, and the old say that their grandparents saw who cut it. Most mornings a mist
lies on the fields until the bell has rung twice.

The baker is up before everyone else. She lights the oven with wood from the orchard, because apple wood burns slowly
and smells of something even when the bread does not. Her father taught her to judge the heat by holding a hand in the
door and counting. She owns a thermometer and has never hung it up. When the first loaves are out she puts two of them
on the sill, one for the postman and one for whoever needs it. It is always gone by the time the school opens.

The postman walks his round in the same order every day, and dogs know him by his step. He carries a stick against the
geese at the mill. Letters are fewer than they were, and parcels are heavier. He likes the long lane behind the
station best, where the hedges are full of sparrows and nobody expects anything. Once he found a ring on the path
there and asked at every door until he had found the finger it belonged to. It took him most of a week.

The mill has not ground any corn for a generation. A potter works in it now, and her kiln stands where the wheel used
to turn. She digs her clay from the bank upstream, where it is grey and smooth and full of small shells. The shells
have to be picked out by hand, for they burst in the fire and take the bowl with them. She sells her bowls at the
market on the square and keeps those with a crack for herself. Her shelves hold nothing but cracked bowls, and she is
fond of every one of them.

On market days the square fills with carts from the villages. There are cheeses as large as wheels and plums in flat
baskets lined with leaves. A man sells brushes that he binds in the winter, and his wife sells honey from the heath.
They never stand side by side, since each claims that the other talks too much. Towards noon the band plays under the
lime trees, not very well, but with good will. When it rains they all crowd beneath the arches of the town hall and
trade goes on as before.

The clock on the town hall is slow. It has been repaired by three masters from the city, and each of them explained
what the one before had done wrong. For some days after each visit it kept perfect time. Then it fell back to its own
opinion. The station has a clock of its own, which is right, and travellers learn to trust the one and to love the
other.

There is a library on the hill, in a house that a doctor left to the town. The rooms are small and the stairs
complain. Its keeper knows the books by their places rather than by their titles, and he would be lost if anyone
tidied them. He reads aloud on winter evenings, a chapter each time, and stops where it hurts most to stop. Half of
the listeners come for the story and half of them for the stove. Nobody has ever asked which half is which.

Beyond the last houses the road climbs through beech woods to the pass. Carters used to rest their horses at the
spring there and leave a coin on the stone. The coins are gone, but the stone has a hollow worn by hands. From the top
one sees the whole valley, the river like a dropped ribbon, the roofs, the smoke going straight up on a still day. On
the other side the land is dry and the villages are built of a paler stone. People there say that their neighbours are
slow, and that it must be the water.

In autumn the swallows gather on the wires and argue for days before they leave. The orchards are picked from the top
down, and the last apples are left for the blackbirds, as is the custom. Cider is pressed in the yard behind the inn.
The first glass is poured on the ground, the second goes to the oldest person present, and after that there is no more
order to it. Songs are sung whose words nobody understands any longer. They are sung with great care.

Winter comes over the pass in one night. The lamps are lit at four, the boats lie upside down under the snow, and the
river grows quiet at its edges. Then neighbours visit one another more than in any other season. They mend nets, shell
beans, and tell the same stories with small improvements. A stranger who stayed through a whole winter wrote later
that he had never heard so little news and learned so much. He came back the following year and bought the house by
the weir.
"""
